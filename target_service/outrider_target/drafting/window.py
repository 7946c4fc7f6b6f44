"""How many draft tokens a round wants for a sequence: transformers' schedules, and our own.

Source: `AssistedCandidateGenerator.update_candidate_strategy` in transformers. Knows nothing of
drafters or models.
"""

from __future__ import annotations

from dataclasses import dataclass

AUTO = "auto"
"""Ours: asks as "heuristic" does, but only where that pays, and verifies what pays (`control`)."""

SCHEDULES = ("constant", "heuristic", "heuristic_transient", AUTO)


@dataclass(slots=True)
class Window:
    """The moving window of one sequence.

    Attributes:
        size: Draft tokens wanted in the next round, before the limits of length.
        schedule: "constant" keeps the size. The others add two after full acceptance and otherwise
            take one away, down to one.
        maximum: Upper bound whatever the schedule says.
    """

    size: int
    schedule: str
    maximum: int

    def __post_init__(self) -> None:
        self.size = min(self.size, self.maximum)

    def next_size(self, length: int, max_length: int) -> int:
        """Draft tokens for the next round of a sequence of `length` tokens.

        The round itself adds one token, so a draft longer than `max_length - length - 1` could
        never be kept whole.
        """
        return max(0, min(self.size, max_length - length - 1))

    def cut_to(self, num_paying: int) -> None:
        """Learn that no more of a draft than this pays: the next need not be much longer."""
        self.size = min(self.size, num_paying + 1)

    def observe(self, num_draft_tokens: int, num_accepted: int) -> None:
        """Move after a round that verified `num_draft_tokens`, as transformers does."""
        if self.schedule == "constant" or num_draft_tokens == 0:
            return
        if num_accepted == num_draft_tokens:
            self.size = min(self.size + 2, self.maximum)
        else:
            self.size = max(1, self.size - 1)
