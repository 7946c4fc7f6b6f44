"""The finished hypotheses of a search or of one of its groups, as transformers 4 kept them.

Source: transformers 4.56, `BeamHypotheses`. What transformers 5 keeps is in `search.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

from outrider_target.decoding.beams.beam import Beam, Choice, Hypothesis
from outrider_target.decoding.beams.settings import BeamSettings, EarlyStopping
from outrider_target.requests.request import Finish


class Finished:
    """The best of what has ended, so many of them."""

    def __init__(
        self, settings: BeamSettings, *, size: int, num_prompt_tokens: int, max_length: int
    ) -> None:
        self._settings = settings
        self._size = size
        self._num_prompt_tokens = num_prompt_tokens
        self._most_tokens = max_length - num_prompt_tokens
        self.hypotheses: list[Hypothesis] = []
        """In the order in which they ended."""

    def add(self, hypothesis: Hypothesis) -> None:
        """Keep a hypothesis if there is room, or a worse one to drop."""
        self.hypotheses.append(hypothesis)
        if len(self.hypotheses) > self._size:
            worst = min(range(len(self.hypotheses)), key=self._score)
            del self.hypotheses[worst]

    def add_choice(self, choice: Choice, beams: Sequence[Beam]) -> None:
        """Keep the hypothesis that a continuation makes."""
        length = len(beams[choice.parent].branch.token_ids) + 1 - self._num_prompt_tokens
        score = choice.score / length**self._settings.length_penalty
        self.add(choice.hypothesis(beams, self._num_prompt_tokens, score))

    def add_beam(self, beam: Beam, finish: Finish) -> None:
        """Keep a live beam as it is."""
        penalty = self._settings.length_penalty
        self.add(beam.hypothesis(self._num_prompt_tokens, penalty, finish))

    def suffices(self, best_score: float, num_tokens: int) -> bool:
        """Whether no live beam is waited for.

        Args:
            best_score: Sum of log-probabilities of the best continuation of the step.
            num_tokens: Generated tokens, with the step's.
        """
        if len(self.hypotheses) < self._size:
            return False
        early = self._settings.early_stopping
        if early is EarlyStopping.YES:
            return True
        penalty = self._settings.length_penalty
        if early is EarlyStopping.NEVER and penalty > 0.0:
            num_tokens = self._most_tokens
        worst = min(hypothesis.found.score for hypothesis in self.hypotheses)
        return bool(worst >= best_score / num_tokens**penalty)

    def _score(self, index: int) -> float:
        return self.hypotheses[index].found.score


def best_first(hypotheses: Sequence[Hypothesis]) -> list[Hypothesis]:
    """Sorted by score; of equal ones the last to end comes first."""
    return sorted(hypotheses, key=lambda one: one.found.score)[::-1]
