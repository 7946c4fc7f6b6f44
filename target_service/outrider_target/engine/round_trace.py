"""Which rounds of a request a trace shows, and what was in them.

Only a request whose trace is recorded has one. Bounded: its first rounds, then one in some. Knows
nothing of spans.
"""

from __future__ import annotations

from typing import NamedTuple

from outrider_target.requests.request import DraftMethod

FIRST_ROUNDS = 16
"""Rounds of a sequence that are all kept."""

EVERY = 16
"""Of the later ones, one in so many is."""

MOST_ROUNDS = 128
"""Of all sequences of a request."""


class TracedRound(NamedTuple):
    """A request's sequence in a round. Times are of `time.monotonic()`."""

    sequence_index: int
    number: int
    """Counted from 0 for each sequence."""
    began: float
    ended: float
    """When its tokens were committed."""
    method: DraftMethod
    num_draft_tokens: int
    num_accepted_tokens: int
    num_tokens: int
    """Tokens decided."""


class RoundTrace:
    """Filled by the engine thread."""

    __slots__ = ("_num_rounds", "rounds")

    def __init__(self) -> None:
        self.rounds: list[TracedRound] = []
        self._num_rounds: dict[int, int] = {}

    def next_number(self, sequence_index: int) -> int | None:
        """Number of a sequence's round, which has come to its end; None: it is not kept."""
        number = self._num_rounds.get(sequence_index, 0)
        self._num_rounds[sequence_index] = number + 1
        kept = number < FIRST_ROUNDS or number % EVERY == 0
        return number if kept and len(self.rounds) < MOST_ROUNDS else None
