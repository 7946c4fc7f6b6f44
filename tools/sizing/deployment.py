"""What is sized: targets, drafters, and what their steps cost. Times in seconds.

Each draft token agrees with probability `a` as long as all before it did, so that a round with a
window of `g` emits E(g) = 1 + a + .. + a**g tokens (Leviathan et al. 2023, equation 1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class Cost(NamedTuple):
    """Time of a forward by its rows."""

    fixed: float
    per_row: float

    def of(self, rows: float) -> float:
        """Of a forward of so many."""
        return self.fixed + self.per_row * rows


@dataclass(frozen=True, slots=True)
class Deployment:
    """Targets that share drafters, all of them busy."""

    targets: int
    drafters: int
    sequences: int
    """That run on each target at a time."""
    window: int
    """Tokens that a round verifies of a sequence, beside its last one."""
    agreement: float
    """Probability that a draft token is accepted if those before it were, 0 to 1."""
    verify: Cost
    """A round of the target; a sequence has window + 1 rows of it."""
    step: Cost
    """A step of a drafter, which makes each of its lines one token longer."""
    round_trip: float = 0.0
    """Of the line between them."""
    max_lines: int = 64
    """Of a step: --max-num-seqs of the drafter."""

    @property
    def all_sequences(self) -> int:
        """Of all targets."""
        return self.targets * self.sequences

    @property
    def tokens_per_round(self) -> float:
        """E(g)."""
        return sum(self.agreement**i for i in range(self.window + 1))

    @property
    def plain(self) -> float:
        """Tokens a second of all targets without drafts."""
        return self.all_sequences / self.verify.of(self.sequences)
