"""The port of the forms of beam search: which beams go on after a step, and what was found."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from outrider_runtime.model.selection import InvalidScores

from outrider_target.decoding.beams.beam import Beam, Choice, Hypothesis
from outrider_target.decoding.beams.scores import BeamScores
from outrider_target.requests.request import Finish

HOPELESS = -1e9
"""Added to the score of what must not be chosen while anything else is left."""


class BeamRule(Protocol):
    """One sequence's beam search."""

    first_scores: Sequence[float]
    """Scores of the beams before the first step, when all have the prompt alone."""
    done: bool
    """Whether no further step could change what is returned."""

    def step(self, beams: Sequence[Beam], scores: BeamScores) -> Sequence[Choice]:
        """Choose the beams that go on, as many as there are, and keep what has finished.

        Raises:
            InvalidScores: No token is left to choose.
        """

    def close(self, beams: Sequence[Beam], finish: Finish) -> None:
        """Take the live beams as they are among what was found: there is no next step."""

    def best(self, beams: Sequence[Beam]) -> Hypothesis:
        """The best hypothesis so far, finished or not."""

    def found(self) -> Sequence[Hypothesis]:
        """The hypotheses to return, best first."""


def check_possible(best: torch.Tensor) -> None:
    """Refuse a step whose best score says that nothing can be chosen.

    Raises:
        InvalidScores: It does.
    """
    if bool(best == -torch.inf):
        why = "the request's options leave no token to choose"
        raise InvalidScores(0, why, options_at_fault=True)
