"""Beam search as a decoding strategy: each live beam is a branch, forked off its parent.

Knows nothing of how beams are chosen: that is its rule's (`rule.py`). A round computes the rows of
the live beams and of what is guessed to follow them; the rule then takes a step for as long as the
rows of all beams that it chose are at hand. It never sees a guess, so none changes what is found.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from outrider_runtime.model.row_group import NamedProcessor
from outrider_runtime.sampling_parameters import SamplingParameters

from outrider_target.decoding.beams.beam import Beam, Choice, Hypothesis
from outrider_target.decoding.beams.beam_form import BeamForm
from outrider_target.decoding.beams.guesses import NO_GUESS, Guesser, Node
from outrider_target.decoding.beams.rule import HOPELESS, BeamRule
from outrider_target.decoding.beams.scores import BeamRows, BeamScores, beam_log_probs
from outrider_target.decoding.beams.settings import BeamSettings
from outrider_target.decoding.branch import Branch
from outrider_target.decoding.stopping import StopStrings
from outrider_target.decoding.strategy import BranchRows, Decision, Selector
from outrider_target.drafting.drafter import Draft
from outrider_target.engine.events import BeamProgress, Event, TokensDecided
from outrider_target.requests.request import Finish, FinishReason


class BeamStrategy:
    """A sequence of beams. Nothing of its text is committed before its end."""

    verifies_others = False
    """Its own guesses are paths already, more than one a beam."""

    def __init__(
        self,
        settings: BeamSettings,
        parameters: SamplingParameters,
        rule: BeamRule,
        prompt: Sequence[int],
        stop_strings: StopStrings | None,
        processors: Sequence[NamedProcessor] = (),
        guesser: Guesser | None = None,
        form: BeamForm | None = None,
    ) -> None:
        self._guesser = guesser
        self._guess = NO_GUESS
        self._processors = processors
        self._settings = settings
        self._parameters = parameters
        self._rule = rule
        self.token_ids: Sequence[int] = prompt
        first = Branch(list(prompt))
        self.branches: Sequence[Branch] = (first,)
        # Before the first step all beams are the prompt: one branch stands for them.
        self._beams = [Beam(first, score, (), stop_strings, form) for score in rule.first_scores]
        self._num_steps = 0

    @property
    def width(self) -> int:
        """As many branches as beams."""
        return self._settings.width

    @property
    def selector(self) -> Selector:
        """Log-probabilities; the rule does the rest."""
        return beam_log_probs

    def guess(self, most_rows: int) -> Sequence[int]:
        """Guess at the beams of the next steps, for the next round.

        Args:
            most_rows: Rows that it may cost, beside those of the live beams.

        Returns:
            The guessed tokens, in no order that means anything.
        """
        self._guess = NO_GUESS
        # Before the first step there is nothing to go by, and one branch for all beams.
        if self._guesser is not None and len(self.branches) == len(self._beams):
            self._guess = self._guesser.guess(self._beams, most_rows)
        return [node.path[-1] for node in self._guess.rows if node.path]

    def admissible(self, draft: Sequence[int]) -> int:
        """The whole guess."""
        return len(draft)

    def rows(self, draft: Draft) -> BeamRows:
        """The last token of each branch, and the guess, unless it is not to be computed."""
        if not draft.token_ids:
            return BeamRows([BranchRows((), 1)] * len(self.branches))
        return BeamRows(
            [
                BranchRows(first, 1 + len(first), others=others)
                for first, *others in (paths or [()] for paths in self._guess.paths)
            ]
        )

    def fed(self) -> Sequence[Event]:
        """Nothing to report of a prompt."""
        return ()

    def commit(self, draft: Sequence[int], own: torch.Tensor) -> Decision:
        """Steps of the rule, as far as their rows are at hand."""
        if len(self.branches) < len(self._beams):
            own = own.expand(len(self._beams), -1)
        held = self.branches
        rows = self._guess.rows if draft else {}
        nodes = [Node(index, ()) for index in range(len(self._beams))]
        at_hand = own[[rows[node] for node in nodes]] if rows else own
        events: list[Event] = []
        num_accepted = 0
        while True:
            choices = self._step(at_hand)
            nodes = [nodes[choice.parent].followed_by(choice.token_id) for choice in choices]
            if self._rule.done:
                break
            events += self._progress()
            if any(node not in rows for node in nodes):
                break
            at_hand = own[[rows[node] for node in nodes]]
            num_accepted += 1
        if draft and self._guesser is not None:
            self._guesser.observe(num_accepted)
        if self._rule.done:
            end = self.end(Finish(FinishReason.LENGTH))
            return end._replace(num_accepted=num_accepted, events=[*events, *end.events])
        for beam, node in zip(self._beams, nodes, strict=True):
            # Rows are in the pool behind the branches of the round, not behind those of its steps.
            beam.branch.source = held[min(node.beam, len(held) - 1)]
        self.branches = tuple(beam.branch for beam in self._beams)
        return Decision((), num_accepted, 0, events)

    def _step(self, log_probs: torch.Tensor) -> Sequence[Choice]:
        """One step of plain beam search, from the rows [beams, vocab] of all live beams."""
        if self._guesser is not None:
            self._guesser.learn(self._beams, log_probs)
        scores = BeamScores(
            log_probs,
            self._beams,
            self._parameters,
            num_prompt_tokens=len(self.token_ids),
            processors=self._processors,
        )
        choices = self._rule.step(self._beams, scores)
        self._beams = [choice.beam(self._beams) for choice in choices]
        self._num_steps += 1
        return choices

    def end(self, finish: Finish) -> Decision:
        """The best that there is; before the rule is done, live beams are as good as finished."""
        if not self._rule.done or len(self._rule.found()) < self._settings.num_return_sequences:
            self._rule.close(self._beams, finish)
        found = list(self._rule.found())
        # A form may have fewer texts than are wanted: the best one stands for the rest.
        for _ in range(self._settings.num_return_sequences - len(found)):
            found.append(found[0]._replace(found=found[0].found._replace(score=HOPELESS)))
        return self._decision(found)

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
