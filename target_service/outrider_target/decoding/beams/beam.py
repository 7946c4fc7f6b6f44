"""The nouns of beam search: live beams, choices among their continuations, finished hypotheses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from outrider_target.decoding.beams.beam_form import BeamForm
from outrider_target.decoding.branch import Branch
from outrider_target.decoding.stopping import StopStrings
from outrider_target.requests.request import Finish


class BeamScore(NamedTuple):
    """How a hypothesis was found.

    Attributes:
        score: Sum of the processed log-probabilities of its generated tokens, divided by their
            number to the power of the length penalty: transformers' `sequences_scores`.
        beam_indices: For each generated token the beam that it continued.
    """

    score: float
    beam_indices: Sequence[int]


class Hypothesis(NamedTuple):
    """A text that beam search found.

    Attributes:
        token_ids: Its generated tokens.
        found: How.
        finish: How it ended; None while it is a live beam.
    """

    token_ids: Sequence[int]
    found: BeamScore
    finish: Finish | None


@dataclass(slots=True, eq=False)
class Beam:
    """A hypothesis that is still growing."""

    branch: Branch
    """All its tokens, prompt first."""
    score: float
    """Sum of processed log-probabilities, a float32; -1e9 and less for what is there only to fill
    the number, as in transformers."""
    beam_indices: tuple[int, ...]
    stop_strings: StopStrings | None
    """What they have seen of its text."""
    form: BeamForm | None = None
    """How far it has come in the form of its text; None where it is free, or cannot be."""

    def hypothesis(
        self, num_prompt_tokens: int, length_penalty: float, finish: Finish | None = None
    ) -> Hypothesis:
        """The beam as it is."""
        token_ids = self.branch.token_ids[num_prompt_tokens:]
        score = self.score / max(1, len(token_ids)) ** length_penalty
        return Hypothesis(token_ids, BeamScore(score, self.beam_indices), finish)


class Choice(NamedTuple):
    """A continuation of a live beam.

    Attributes:
        parent: Which beam.
        token_id: By which token.
        score: Sum of processed log-probabilities, with the token.
        finish: Set when the token ends the text.
        stop_strings: What the stop strings have seen with the token.
        form: How far the text has come in its form with the token.
    """

    parent: int
    token_id: int
    score: float
    finish: Finish | None
    stop_strings: StopStrings | None
    form: BeamForm | None = None

    def beam(self, beams: Sequence[Beam]) -> Beam:
        """The live beam it makes."""
        parent = beams[self.parent]
        return Beam(
            parent.branch.continued(self.token_id),
            self.score,
            (*parent.beam_indices, self.parent),
            self.stop_strings,
            self.form,
        )

    def hypothesis(self, beams: Sequence[Beam], num_prompt_tokens: int, score: float) -> Hypothesis:
        """The finished text it makes, with its final score."""
        parent = beams[self.parent]
        return Hypothesis(
            [*parent.branch.token_ids[num_prompt_tokens:], self.token_id],
            BeamScore(score, (*parent.beam_indices, self.parent)),
            self.finish,
        )
