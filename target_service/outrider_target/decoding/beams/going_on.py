"""Which candidates of a step go on and which have ended, as in transformers 4.

Source: transformers 4.56, `BeamSearchScorer.process`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from outrider_target.decoding.beams.beam import Choice
from outrider_target.decoding.beams.rule import HOPELESS
from outrider_target.requests.request import FinishReason


class Step(NamedTuple):
    """A step's outcome.

    Attributes:
        going_on: The beams to be, as many as there are.
        ended: What was finished, best first.
    """

    going_on: list[Choice]
    ended: list[Choice]


def take_ended(candidates: Sequence[Choice], num_beams: int) -> Step:
    """Split candidates, best first. What is merely at its length has not ended by itself.

    Only the best `num_beams` candidates can end: the others are a reserve. Where too few are left,
    as stop strings may have it, ended ones fill the places, without hope.
    """
    ended: list[Choice] = []
    going_on: list[Choice] = []
    for rank, choice in enumerate(candidates):
        if has_ended(choice):
            if rank < num_beams:
                ended.append(choice)
        else:
            going_on.append(choice)
        if len(going_on) == num_beams:
            break
    fillers = (choice for choice in candidates if has_ended(choice))
    while len(going_on) < num_beams:
        choice = next(fillers)
        going_on.append(choice._replace(score=choice.score + HOPELESS))
    return Step(going_on, ended)


def has_ended(choice: Choice) -> bool:
    """Whether a stopping rule was met, other than the length."""
    return choice.finish is not None and choice.finish.reason is FinishReason.STOP
