"""The tokens of a row that can still be chosen, gathered so that what follows touches only them.

Knows nothing of prefixes, seeds or noise. With the usual top_k of 50, all later work then runs on
some 60 entries a row and not on a vocabulary of 150,000.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from outrider_runtime.model.arrays import NUMPY, Array, Arrays

_SLACK = 2.0**-20
"""Scores a few units in the last place apart can become equal when divided by the temperature, and
top_k keeps what ties: the bound is lowered by this share of itself."""
_SMALLEST_WINDOW = 64
_LOWEST = float(np.finfo(np.float32).min)


class Candidates(NamedTuple):
    """Scores of possible tokens, in the order of their ids."""

    values: Array
    """Float32 [rows, n]; minus infinity for what is dropped and for padding."""
    token_ids: Array | None
    """Int64 [rows, n], 0 at padding; None when n is the whole vocabulary."""
    complete: Array | None = None
    """Bool [rows]: whether all tokens wanted are there; None when they always are."""


def window(number: int) -> int:
    """Width at which a device gathers the `number` highest scores and what ties with the last.

    A function of the request alone, never of its company: the width decides how a device's kernel
    groups its sums.
    """
    return max(_SMALLEST_WINDOW, 1 << number.bit_length())


def highest(xp: Arrays, scores: Array, last_wanted: Array, *, width: int) -> Candidates:
    """At least the `last_wanted[r] + 1` highest scores of row r, and all that tie with the last.

    On CPU every row gets what it needs. On a device, where every row gets one window, `complete`
    says which rows did: one with more ties than places did not.

    Args:
        xp: where the scores live.
        scores: [rows, vocab].
        last_wanted: int64 [rows]: numbers of scores less one, below the size of the vocabulary.
        width: their `window`, equal for all.
    """
    vocab_size = scores.shape[-1]
    if xp is NUMPY:
        return _from(scores, _lower_bound(scores, (last_wanted + 1).tolist()))
    width = min(width, vocab_size)
    found = scores.topk(width)
    token_ids = found.indices.sort(dim=-1).values
    complete = None
    if width < vocab_size:
        last = xp.pick(found.values, last_wanted)
        least = last - abs(last) * _SLACK
        # Nothing is missing behind a score of minus infinity either.
        complete = (found.values[:, -1] < least) | (last == -math.inf)
    return Candidates(xp.take(scores, token_ids), token_ids, complete)


def possible(xp: Arrays, scores: Array) -> Candidates:
    """The tokens of [rows, vocab] scores that are above minus infinity."""
    if xp is NUMPY:
        return _from(scores, np.full((len(scores), 1), _LOWEST, np.float32))
    return Candidates(scores, None)  # finding out how many they are would wait for the device


def _lower_bound(scores: Array, numbers: Sequence[int]) -> Array:
    """[rows, 1]: a score that the numbers[r] highest of row r reach, and few others.

    Cut a row into sets: the n-th highest of the sets' maxima is reached by n different scores.
    Maxima of sets (every count-th score, so that numpy compares whole vectors) cost a tenth of a
    partition of the row.
    """
    rows, vocab_size = scores.shape
    most = max(numbers)
    size = vocab_size // (4 * most)
    if size > 1:
        count = vocab_size // size
        heads = scores[:, : count * size].reshape(rows, size, count).max(axis=1)
    else:
        count, heads = vocab_size, scores
    if min(numbers) == most:
        bound = np.partition(heads, count - most, axis=-1)[:, count - most]
    else:
        bound = np.sort(heads, axis=-1)[np.arange(rows), count - np.asarray(numbers)]
    lowered: Array = np.maximum(bound - np.abs(bound) * np.float32(_SLACK), np.float32(_LOWEST))
    return lowered[:, None]


def _from(scores: Array, bound: Array) -> Candidates:
    """All scores that reach their row's bound, padded to the longest row."""
    rows, vocab_size = scores.shape
    cells = np.flatnonzero(scores >= bound)  # several times faster than a two-dimensional nonzero
    row_of = cells // vocab_size
    counts = np.bincount(row_of, minlength=rows)
    place = np.arange(len(cells)) - (np.cumsum(counts) - counts)[row_of]
    values = np.full((rows, max(int(counts.max()), 1)), -math.inf, np.float32)
    values[row_of, place] = scores.reshape(-1)[cells]
    token_ids = np.zeros(values.shape, np.int64)
    token_ids[row_of, place] = cells - row_of * vocab_size
    return Candidates(values, token_ids)
