"""Truncations of a row's distribution: what follows temperature when a request samples.

Knows nothing of prefixes or token ids. Rows are [rows, n] scores in the order of their token ids,
where n is the vocabulary or any part of it that holds every token still possible; what is dropped
becomes minus infinity. Each function is one of transformers' warpers, with its parameter as a
column of one entry per row, and so the number of tokens that stay at least (`min_tokens_to_keep`);
None is 1 for all rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

from outrider_runtime.model.arrays import Array, Arrays
from outrider_runtime.sampling_parameters import SamplingParameters

TOP_H_CANDIDATES = 100
"""top_h looks at this many of the highest scores only, as in transformers."""


def top_h(xp: Arrays, values: Array, share: Array, _least: Array | None = None) -> Array:
    """Keep the most probable of 100 tokens while they hold at most `share` of their entropy.

    "Top-H Decoding", 2025, arXiv 2509.02510. Of equal scores the one with the lower id goes first.
    """
    order = xp.argsort(-values, stable=True)[:, :TOP_H_CANDIDATES]
    probs = xp.softmax(xp.take(values, order))
    possible = probs > 0
    terms = xp.where(possible, -probs * xp.log(xp.where(possible, probs, 1.0)), 0.0)
    kept = possible & (xp.cumsum(terms) <= xp.sum(terms) * share)
    # The running entropy never falls: what is kept is the head of the order.
    head = xp.take(values, order)
    number = xp.count(kept)
    number = xp.where(number > 0, number, 1)
    cut = xp.take(head, number - 1)
    tied = values == cut
    free = number - xp.count(values > cut)  # places left for those at the cut, low ids first
    return xp.where((values > cut) | (tied & (xp.running_count(tied) <= free)), values, -math.inf)


def top_k(xp: Arrays, values: Array, number: Array, least: Array | None = None) -> Array:
    """Keep the `number` highest scores, and those equal to the last of them."""
    ordered = xp.sort(values)
    place = values.shape[-1] - xp.to_integers(number)
    cut = xp.take(ordered, xp.where(place > 0, place, 0))
    return _keep_highest(xp, values, xp.where(values < cut, -math.inf, values), least)


def top_p(xp: Arrays, values: Array, tail: Array, least: Array | None = None) -> Array:
    """Drop the least probable tokens as long as they hold at most `tail`, 1 - top_p, together.

    Of equal scores at the cut, transformers' stable ascending sort drops low ids first.
    """
    ordered = xp.sort(values)
    dropped = xp.cumsum(xp.softmax(ordered)) <= tail
    dropped[:, -1] = False
    number = xp.count(dropped)
    cut = xp.take(ordered, number)
    below = values < cut
    excess = number - xp.count(below)  # how many of those equal to the cut go as well
    if xp.perhaps_any(excess > 0):
        tied = values == cut
        below = below | (tied & (xp.running_count(tied) <= excess))
    return _keep_highest(xp, values, xp.where(below, -math.inf, values), least)


def min_p(xp: Arrays, values: Array, fraction: Array, least: Array | None = None) -> Array:
    """Drop tokens less than `fraction` as probable as the most probable one."""
    probs = xp.softmax(values)
    kept = xp.where(probs < fraction * xp.max(probs), -math.inf, values)
    return _keep_highest(xp, values, kept, least)


def typical_p(xp: Arrays, values: Array, mass: Array, least: Array | None = None) -> Array:
    """Keep the tokens whose surprise is nearest the entropy, until they hold `mass`.

    Meister et al., "Locally Typical Sampling", 2022, arXiv 2202.00666.
    """
    log_probs = xp.log_softmax(values)
    probs = xp.exp(log_probs)
    entropy = -xp.sum(xp.where(probs > 0, log_probs * probs, 0.0))
    oddness = abs(-log_probs - entropy)
    order = xp.argsort(
        oddness, stable=False
    )  # equally odd tokens are as probable, or stay together
    last = xp.count(xp.cumsum(xp.take(probs, order)) < mass)
    if least is not None:
        last = xp.where(last < least - 1, least - 1, last)
    size = values.shape[-1]
    cut = xp.take(xp.take(oddness, order), xp.where(last < size, last, size - 1))
    return xp.where(oddness > cut, -math.inf, values)


def epsilon_cutoff(xp: Arrays, values: Array, epsilon: Array, least: Array | None = None) -> Array:
    """Drop tokens less probable than `epsilon`, but not the most probable ones.

    Hewitt et al., "Truncation Sampling as Language Model Desmoothing", 2022, arXiv 2210.15191.
    """
    dropped = (xp.softmax(values) < epsilon) & (values < xp.max(values))
    return _keep_highest(xp, values, xp.where(dropped, -math.inf, values), least)


def eta_cutoff(xp: Arrays, values: Array, epsilon: Array, least: Array | None = None) -> Array:
    """Drop tokens less probable than min(epsilon, sqrt(epsilon) e^-entropy), as above."""
    log_probs = xp.log_softmax(values)
    probs = xp.exp(log_probs)
    entropy = -xp.sum(xp.where(probs > 0, log_probs * probs, 0.0))
    eta = epsilon**0.5 * xp.exp(-entropy)
    eta = xp.where(eta < epsilon, eta, epsilon)
    kept = xp.where((probs < eta) & (values < xp.max(values)), -math.inf, values)
    return _keep_highest(xp, values, kept, least)


def _keep_highest(xp: Arrays, values: Array, kept: Array, least: Array | None) -> Array:
    """Put back what was dropped of the `least` highest scores."""
    if least is None:
        return kept
    place = values.shape[-1] - least
    floor = xp.take(xp.sort(values), xp.where(place > 0, place, 0))
    return xp.where(values >= floor, values, kept)


class Warper(NamedTuple):
    """A truncation and where its parameter comes from."""

    parameter: Callable[[SamplingParameters], float]
    apply: Callable[[Arrays, Array, Array, Array | None], Array]


WARPERS: Mapping[str, Warper] = {
    "top_h": Warper(lambda parameters: parameters.top_h or 0.0, top_h),
    "top_k": Warper(lambda parameters: parameters.top_k, top_k),
    "top_p": Warper(lambda parameters: 1 - parameters.top_p, top_p),
    "min_p": Warper(lambda parameters: parameters.min_p or 0.0, min_p),
    "typical_p": Warper(lambda parameters: parameters.typical_p, typical_p),
    "epsilon_cutoff": Warper(lambda parameters: parameters.epsilon_cutoff, epsilon_cutoff),
    "eta_cutoff": Warper(lambda parameters: parameters.eta_cutoff, eta_cutoff),
}
"""In transformers' order, by the name of the field; `SamplingParameters.truncations` selects."""
