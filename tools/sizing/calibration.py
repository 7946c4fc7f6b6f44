"""Costs of a deployment from what `measure` counted of one sequence alone and of several together.

Alone nobody queues, so that times are costs; together the rows differ, which gives the slopes. What
of a cycle is neither drafting nor verifying is put down to the line.
"""

from __future__ import annotations

from collections.abc import Mapping

from tools.sizing.deployment import Cost, Deployment


def calibrated(
    alone: Mapping[str, float], together: Mapping[str, float], *, window: int
) -> Deployment:
    """One target, one drafter and one sequence, as measured.

    Args:
        alone: The point of one sequence.
        together: One of several, with one drafter.
        window: Of both.
    """
    accepted = alone["accepted_per_draft"]
    cycle = (accepted + 1) / alone["tokens_per_second"]
    verify = _line(
        (alone["round_rows"], alone["round_seconds"]),
        (together["round_rows"], together["round_seconds"]),
    )
    step = _line(
        (alone["step_lines"], alone["answer_seconds"] / window),
        (together["step_lines"], together["step_seconds"] + _overhead(alone, window)),
    )
    return Deployment(
        targets=1,
        drafters=1,
        sequences=1,
        window=window,
        agreement=agreement_of(accepted, window),
        verify=verify,
        step=step,
        round_trip=max(0.0, cycle - alone["answer_seconds"] - alone["round_seconds"]),
    )


def agreement_of(accepted: float, window: int) -> float:
    """The agreement of which a + a**2 + .. + a**window are accepted, by bisection."""
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        if sum(middle**i for i in range(1, window + 1)) < accepted:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _overhead(alone: Mapping[str, float], window: int) -> float:
    """What a step costs beside its forward."""
    return alone["answer_seconds"] / window - alone["step_seconds"]


def _line(one: tuple[float, float], other: tuple[float, float]) -> Cost:
    slope = max(0.0, (other[1] - one[1]) / (other[0] - one[0]))
    return Cost(one[1] - slope * one[0], slope)
