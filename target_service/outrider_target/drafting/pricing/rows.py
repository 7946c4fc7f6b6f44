"""Which draft tokens of a batch a round verifies: the price rule. Pure.

Each token more is worth the probability that it is accepted, and costs a row. Taken are the most
probable of the whole batch, so many that the expected tokens a second are most: at the best point,
a token's probability is the tokens that the time of its row would bring otherwise
(Liu et al. 2024, "SmartSpec", arXiv 2406.14066, section 4; the same as goodput in vLLM's adaptive
verification).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

_LEAST = 0.01
"""Nothing so improbable ever pays."""


def allot(survivals: Sequence[Sequence[float]], seconds: Callable[[int], float]) -> list[int]:
    """Share out rows.

    Args:
        survivals: For each sequence of the round and each token of its draft, the probability that
            it and all before it are accepted. Does not increase within a draft.
        seconds: Of a round that verifies so many draft tokens in all.

    Returns:
        For each sequence how many tokens of its draft to verify.
    """
    ranked = sorted(
        (-survival, position, index)
        for index, draft in enumerate(survivals)
        for position, survival in enumerate(_falling(draft))
        if survival > _LEAST
    )
    expected = float(len(survivals))
    best, taken = expected / seconds(0), 0
    for number, (negative_survival, _, _) in enumerate(ranked, start=1):
        expected -= negative_survival
        goodput = expected / seconds(number)
        if goodput > best:
            best, taken = goodput, number
    allotted = [0] * len(survivals)
    for _, _, index in ranked[:taken]:
        allotted[index] += 1
    return allotted


def _falling(survival: Sequence[float]) -> list[float]:
    """Never more than the one before, so that what is taken of a draft is its beginning."""
    least = 1.0
    return [least := min(least, each) for each in survival]
