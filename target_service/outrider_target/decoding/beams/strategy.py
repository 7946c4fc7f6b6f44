"""Beam search as a decoding strategy: each live beam is a branch, forked off its parent.

Knows nothing of how beams are chosen: that is its rule's (`rule.py`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from outrider_runtime.model.row_group import NamedProcessor
from outrider_runtime.sampling_parameters import SamplingParameters

from outrider_target.decoding.beams.beam import Beam, Hypothesis
from outrider_target.decoding.beams.rule import BeamRule
from outrider_target.decoding.beams.scores import BeamRows, BeamScores, beam_log_probs
from outrider_target.decoding.beams.settings import BeamSettings
from outrider_target.decoding.branch import Branch
from outrider_target.decoding.stopping import StopStrings
from outrider_target.decoding.strategy import BranchRows, Decision, Selector
from outrider_target.engine.events import BeamProgress, Event, TokensDecided
from outrider_target.requests.request import Finish, FinishReason


class BeamStrategy:
    """A sequence of beams. Nothing of its text is committed before its end."""

    def __init__(
        self,
        settings: BeamSettings,
        parameters: SamplingParameters,
        rule: BeamRule,
        prompt: Sequence[int],
        stop_strings: StopStrings | None,
        processors: Sequence[NamedProcessor] = (),
    ) -> None:
        self._processors = processors
        self._settings = settings
        self._parameters = parameters
        self._rule = rule
        self.token_ids: Sequence[int] = prompt
        first = Branch(list(prompt))
        self.branches: Sequence[Branch] = (first,)
        # Before the first step all beams are the prompt: one branch stands for them.
        self._beams = [Beam(first, score, (), stop_strings) for score in rule.first_scores]
        self._num_steps = 0

    @property
    def width(self) -> int:
        """As many branches as beams."""
        return self._settings.width

    @property
    def selector(self) -> Selector:
        """Log-probabilities; the rule does the rest."""
        return beam_log_probs

    def admissible(self, draft: Sequence[int]) -> int:
        """Nothing: there is no one text to continue."""
        return 0

    def rows(self, draft: Sequence[int]) -> BeamRows:
        """The last token of each branch."""
        return BeamRows([BranchRows((), 1)] * len(self.branches))

    def fed(self) -> Sequence[Event]:
        """Nothing to report of a prompt."""
        return ()

    def commit(self, draft: Sequence[int], own: torch.Tensor) -> Decision:
        """One step of the rule."""
        if len(self.branches) < len(self._beams):
            own = own.expand(len(self._beams), -1)
        scores = BeamScores(
            own,
            self._beams,
            self._parameters,
            num_prompt_tokens=len(self.token_ids),
            processors=self._processors,
        )
        choices = self._rule.step(self._beams, scores)
        self._beams = [choice.beam(self._beams) for choice in choices]
        self.branches = tuple(beam.branch for beam in self._beams)
        self._num_steps += 1
        if self._rule.done:
            return self.end(Finish(FinishReason.LENGTH))
        return Decision((), 0, 0, self._progress())

    def end(self, finish: Finish) -> Decision:
        """The best that there is; before the rule is done, live beams are as good as finished."""
        if not self._rule.done or len(self._rule.found()) < self._settings.num_return_sequences:
            self._rule.close(self._beams, finish)
        return self._decision(self._rule.found())

    def _progress(self) -> Sequence[Event]:
        interval = self._settings.progress_interval
        if not interval or self._num_steps % interval:
            return ()
        best = self._rule.best(self._beams)
        return (BeamProgress(best.token_ids, best.found.score, best.finish is not None),)

    def _decision(self, found: Sequence[Hypothesis]) -> Decision:
        events = [
            TokensDecided(
                index,
                hypothesis.token_ids,
                [False] * len(hypothesis.token_ids),
                hypothesis.finish,
                beam=hypothesis.found,
            )
            for index, hypothesis in enumerate(found)
        ]
        num_generated = sum(len(hypothesis.token_ids) for hypothesis in found)
        return Decision((), 0, num_generated, events, found[0].finish)
