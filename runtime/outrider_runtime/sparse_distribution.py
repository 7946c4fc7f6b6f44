"""A proposal distribution of few tokens with whole-number weights, small enough to be sent along.

A drafter that samples may sample from anything, as long as the target is told exactly what: so the
draft model's distribution is cut to its most probable tokens and rounded *first*, and the token is
drawn from what is left. Nothing is lost but some acceptance (algorithm and name, "sparse quantize
and sample": arXiv 2510.09942). Knows nothing of models, noise or the wire.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

MAX_SUPPORT = 64
"""Most tokens of a distribution."""

MAX_WEIGHT = 2**16 - 1
"""Largest weight: 16 bits."""


class SparseDistribution(NamedTuple):
    """Probabilities proportional to weights; every other token has none.

    Attributes:
        token_ids: The tokens, each once.
        weights: Theirs, in [1, MAX_WEIGHT].
    """

    token_ids: Sequence[int]
    weights: Sequence[int]

    def gave(self, token_id: int, *, vocab_size: int) -> bool:
        """Whether this is a distribution over a vocabulary and could have given the token."""
        size = len(self.token_ids)
        return (
            1 <= size <= MAX_SUPPORT
            and len(self.weights) == size == len(set(self.token_ids))
            and min(self.token_ids) >= 0
            and max(self.token_ids) < vocab_size
            and min(self.weights) >= 1
            and max(self.weights) <= MAX_WEIGHT
            and token_id in self.token_ids
        )
