"""The capacity model: where sequences spend their time, as a fixed point.

A sequence goes round: drafter, line, target. How long it is at either depends on how many are there
with it, and that on how long they are there: the fixed point of both is the answer. It ignores that
arrivals come in clumps; the simulator does not.
"""

from __future__ import annotations

from typing import NamedTuple

from tools.sizing.deployment import Deployment

_ITERATIONS = 200


class Capacity(NamedTuple):
    """What a deployment is expected to do."""

    tokens_per_second: float
    """Of all targets."""
    drafter_busy: float
    """Share of the time that a drafter steps, 0 to 1."""
    target_busy: float
    """Share of the time that a target verifies, 0 to 1."""


def capacity(of: Deployment) -> Capacity:
    """Tokens a second and who is busy."""
    at_drafter, at_target = of.window * of.step.of(1), of.verify.of(of.window + 1)
    for _ in range(_ITERATIONS):
        cycle = at_drafter + of.round_trip + at_target
        drafting = _others(of.all_sequences, at_drafter / cycle, of.drafters)
        verifying = _others(of.all_sequences, at_target / cycle, of.targets)
        # Halfway from what was: the plain iteration may swing around the fixed point.
        at_drafter = (at_drafter + _at_drafter(of, drafting)) / 2
        at_target = (at_target + _at_target(of, verifying)) / 2
    cycle = at_drafter + of.round_trip + at_target
    rounds = of.all_sequences / cycle
    step = of.step.of(1 + drafting) / min(1 + drafting, of.max_lines)
    verify = of.verify.of((1 + verifying) * (of.window + 1)) / (1 + verifying)
    return Capacity(
        rounds * of.tokens_per_round,
        min(1.0, rounds / of.drafters * of.window * step),
        min(1.0, rounds / of.targets * verify),
    )


def _others(sequences: int, share: float, places: int) -> float:
    """How many others a sequence meets at its place (the arrival theorem of closed networks)."""
    return (sequences - 1) * share / places


def _at_drafter(of: Deployment, others: float) -> float:
    """A step for each token, the lines of all; before that the rest of the step that runs."""
    step = of.step.of(min(1 + others, of.max_lines))
    turns = max(1.0, (1 + others) / of.max_lines)
    return of.window * step * turns + min(1.0, others) * step / 2


def _at_target(of: Deployment, others: float) -> float:
    """A round with all that came during the one before; before that the rest of that one.

    With `others` there, half of them wait as well on average and half are being verified.
    """
    together = 1 + others / 2 if others > 1 else 1 + others * (1 - others / 2)
    verify = of.verify.of(together * (of.window + 1))
    return verify + min(1.0, others) * verify / 2
