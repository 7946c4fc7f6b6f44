"""What pacing should bring, in closed form, for one sequence. Pure.

Notation: each draft token agrees with probability `a` as long as all before it did; a round
verifies `g` of them in `t_v` seconds, whatever their number; a step of drafting takes `t_d`; a
frame takes half of `rtt`. A round emits E(g) = 1 + a + .. + a**g tokens (Leviathan et al. 2023,
equation 1). Plain decoding emits one in `t_v`.
"""

from __future__ import annotations

from typing import NamedTuple


class Deployment(NamedTuple):
    """What was measured, or is assumed. Times in seconds."""

    agreement: float
    window: int
    verify: float
    draft_step: float
    round_trip: float

    @property
    def tokens_per_round(self) -> float:
        """E(g)."""
        return sum(self.agreement**i for i in range(self.window + 1))

    @property
    def answer(self) -> float:
        """From a commit to the whole draft that answers it: rtt + g t_d."""
        return self.round_trip + self.window * self.draft_step


def synchronous(of: Deployment) -> float:
    """Speed over plain decoding where each round waits for the answer to the one before."""
    return of.tokens_per_round * of.verify / (of.verify + of.answer)


def prepared(of: Deployment, *, hit_rate: float) -> float:
    """The same where the next draft is at the target already in a share of all rounds.

    What is prepared while the target verifies is late only as far as it takes longer than that
    (the model of pushed enumeration; PEARL and run-ahead are its case without siblings).
    """
    late = max(0.0, of.answer - of.verify)
    exposed = hit_rate * late + (1 - hit_rate) * of.answer
    return of.tokens_per_round * of.verify / (of.verify + exposed)


def run_ahead_hit_rate(of: Deployment) -> float:
    """All accepted, and the bonus token guessed as well: a**(g + 1)."""
    return of.agreement ** (of.window + 1)
