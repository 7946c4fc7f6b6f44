"""Beam search and beam sampling as in transformers 5, `GenerationMixin._beam_search`.

Scores are float32 and are computed in its order, so that near ties fall as they do there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from outrider_runtime.sampling_parameters import SamplingParameters

from outrider_target.decoding.beams.beam import Beam, Choice, Hypothesis
from outrider_target.decoding.beams.draws import Draw
from outrider_target.decoding.beams.ends import Ends
from outrider_target.decoding.beams.rule import HOPELESS, check_possible
from outrider_target.decoding.beams.scores import BeamScores
from outrider_target.decoding.beams.settings import BeamSettings, EarlyStopping
from outrider_target.requests.request import Finish


class _Slot(NamedTuple):
    """A place for a finished hypothesis."""

    score: float
    hypothesis: Hypothesis | None


class BeamSearch:
    """Of 2 x num_beams candidates a step, the best unfinished ones go on.

    There are more candidates where there are several end-of-sequence tokens: at least `num_beams`
    of them do not end their text.
    """

    def __init__(
        self,
        settings: BeamSettings,
        parameters: SamplingParameters,
        draw: Draw,
        ends: Ends,
        *,
        num_prompt_tokens: int,
        formed: bool = False,
    ) -> None:
        self._settings = settings
        self._after_end = -math.inf if formed else HOPELESS
        self._ends = ends
        self._draw = draw
        self._num_prompt_tokens = num_prompt_tokens
        self._most_tokens = parameters.max_length - num_prompt_tokens
        self._num_candidates = max(2, 1 + len(parameters.eos_token_ids)) * settings.num_beams
        self._slots = [_Slot(HOPELESS, None)] * settings.num_beams
        self._improvable = True
        self.first_scores: Sequence[float] = [0.0] + [HOPELESS] * (settings.num_beams - 1)
        self.done = False

    def step(self, beams: Sequence[Beam], scores: BeamScores) -> Sequence[Choice]:
        """See `BeamRule`."""
        num_beams = self._settings.num_beams
        totals = scores.totals(range(len(beams)))
        values, places = self._draw.candidates(totals, beams, self._num_candidates)
        check_possible(values.max())
        vocab_size = totals.shape[1]
        candidates = [
            self._ends.choice(beams, place // vocab_size, place % vocab_size, value)
            for place, value in zip(places.tolist(), values.tolist(), strict=True)
        ]
        ending = torch.tensor([choice.finish is not None for choice in candidates])
        length = len(beams[0].branch.token_ids) + 1 - self._num_prompt_tokens
        # What has just ended goes on only where nothing else is left, in a form not at all.
        running = torch.where(ending, values + self._after_end, values)
        going_on = running.topk(num_beams)
        self._take(beams, candidates[:num_beams], values[:num_beams], length)
        self._judge(going_on.values[0], length, all_ending=bool(ending.all()))
        return [
            candidates[place]._replace(score=score)
            for place, score in zip(
                going_on.indices.tolist(), going_on.values.tolist(), strict=True
            )
        ]

    def close(self, beams: Sequence[Beam], finish: Finish) -> None:
        """See `BeamRule`."""
        length = len(beams[0].branch.token_ids) - self._num_prompt_tokens
        ended = [
            beam.hypothesis(self._num_prompt_tokens, self._settings.length_penalty, finish)
            for beam in beams
        ]
        values = torch.tensor([beam.score for beam in beams], dtype=torch.float32)
        self._merge(ended, values, max(1, length))
        self.done = True

    def best(self, beams: Sequence[Beam]) -> Hypothesis:
        """See `BeamRule`."""
        running = beams[0].hypothesis(self._num_prompt_tokens, self._settings.length_penalty)
        finished = self._slots[0].hypothesis
        if finished is not None and finished.found.score >= running.found.score:
            return finished
        return running

    def found(self) -> Sequence[Hypothesis]:
        """See `BeamRule`."""
        hypotheses = [slot.hypothesis for slot in self._slots if slot.hypothesis is not None]
        return hypotheses[: self._settings.num_return_sequences]

    @property
    def _full(self) -> bool:
        return all(slot.hypothesis is not None for slot in self._slots)

    def _take(
        self, beams: Sequence[Beam], best: Sequence[Choice], values: torch.Tensor, length: int
    ) -> None:
        """Keep finished hypotheses; only the best candidates count, the others are a reserve."""
        ended: list[Hypothesis | None] = [
            choice.hypothesis(beams, self._num_prompt_tokens, choice.score)
            if choice.finish is not None
            else None
            for choice in best
        ]
        self._merge(ended, values, length)

    def _merge(self, ended: Sequence[Hypothesis | None], values: torch.Tensor, length: int) -> None:
        final = values / length**self._settings.length_penalty
        early = self._settings.early_stopping is EarlyStopping.YES
        if (self._full and early) or not self._improvable:
            final = final + HOPELESS
        final = final + torch.tensor([one is None for one in ended]).float() * HOPELESS
        kept = torch.tensor([slot.score for slot in self._slots], dtype=torch.float32)
        merged = torch.cat([kept, final]).topk(len(self._slots))
        slots = [*self._slots]
        for hypothesis, score in zip(ended, final.tolist(), strict=True):
            if hypothesis is not None:
                found = hypothesis.found._replace(score=score)
                hypothesis = hypothesis._replace(found=found)
            slots.append(_Slot(score, hypothesis))
        self._slots = [slots[place] for place in merged.indices.tolist()]

    def _judge(self, best_running: torch.Tensor, length: int, *, all_ending: bool) -> None:
        """Whether a further step could change what is returned."""
        never = self._settings.early_stopping is EarlyStopping.NEVER
        if never and self._settings.length_penalty > 0.0:
            length = self._most_tokens
        attainable = best_running / length**self._settings.length_penalty
        worst = min(slot.score for slot in self._slots)
        to_beat = [HOPELESS if slot.hypothesis is None else worst for slot in self._slots]
        self._improvable = self._improvable and bool(attainable > min(to_beat))
        early = self._settings.early_stopping is EarlyStopping.YES
        hopeless = bool(best_running == -torch.inf)
        self.done = not self._improvable or (early and self._full) or all_ending or hopeless
