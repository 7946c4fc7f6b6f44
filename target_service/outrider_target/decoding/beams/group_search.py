"""Group (diverse) beam search: groups of beams, each kept from saying what the others say.

Vijayakumar et al., "Diverse Beam Search", 2018, arXiv 1610.02424, as in transformers 4.56, the last
release that has it, `GenerationMixin._group_beam_search`. Two things differ: stop strings and
stopping criteria end a hypothesis as an end-of-sequence token does, not the whole search, and
beam indices count through all groups.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from outrider_runtime.sampling_parameters import SamplingParameters

from outrider_target.decoding.beams.beam import Beam, Choice, Hypothesis
from outrider_target.decoding.beams.draws import HighestScores
from outrider_target.decoding.beams.ends import Ends
from outrider_target.decoding.beams.finished import Finished, best_first
from outrider_target.decoding.beams.going_on import take_ended
from outrider_target.decoding.beams.rule import HOPELESS, check_possible
from outrider_target.decoding.beams.scores import BeamScores
from outrider_target.decoding.beams.settings import BeamSettings
from outrider_target.requests.request import Finish


class _Group:
    """Beams that are searched among themselves."""

    def __init__(self, beams: range, finished: Finished) -> None:
        self.beams = beams
        self.finished = finished
        self.done = False


class GroupBeamSearch:
    """Each step the groups choose in turn; what earlier ones chose is worth less to later ones."""

    def __init__(
        self,
        settings: BeamSettings,
        parameters: SamplingParameters,
        ends: Ends,
        *,
        num_prompt_tokens: int,
    ) -> None:
        self._settings = settings
        self._ends = ends
        self._num_prompt_tokens = num_prompt_tokens
        self._max_length = parameters.max_length
        size = settings.num_beams // settings.num_groups
        self._num_candidates = max(2, 1 + len(parameters.eos_token_ids)) * size
        self._groups = [
            _Group(
                range(start, start + size),
                Finished(
                    settings,
                    size=size,
                    num_prompt_tokens=num_prompt_tokens,
                    max_length=parameters.max_length,
                ),
            )
            for start in range(0, settings.num_beams, size)
        ]
        self.first_scores: Sequence[float] = [
            0.0 if index % size == 0 else HOPELESS for index in range(settings.num_beams)
        ]
        self.done = False

    def step(self, beams: Sequence[Beam], scores: BeamScores) -> Sequence[Choice]:
        """See `BeamRule`."""
        chosen: list[Choice] = []
        for group in self._groups:
            if group.done:
                chosen += self._padding(group)
            else:
                said = Counter(choice.token_id for choice in chosen)
                chosen += self._step(group, beams, scores, said)
        self.done = all(group.done for group in self._groups)
        if not self.done and len(beams[0].branch.token_ids) + 1 >= self._max_length:
            self._take_live(chosen, beams)
        return chosen

    def close(self, beams: Sequence[Beam], finish: Finish) -> None:
        """See `BeamRule`."""
        for group in self._groups:
            if not group.done:
                for index in group.beams:
                    group.finished.add_beam(beams[index], finish)
        self.done = True

    def best(self, beams: Sequence[Beam]) -> Hypothesis:
        """See `BeamRule`."""
        live = [
            beams[index].hypothesis(self._num_prompt_tokens, self._settings.length_penalty)
            for group in self._groups
            if not group.done
            for index in group.beams
        ]
        return best_first([*live, *self._hypotheses()])[0]

    def found(self) -> Sequence[Hypothesis]:
        """See `BeamRule`."""
        return best_first(self._hypotheses())[: self._settings.num_return_sequences]

    def _hypotheses(self) -> list[Hypothesis]:
        return [one for group in self._groups for one in group.finished.hypotheses]

    def _step(
        self, group: _Group, beams: Sequence[Beam], scores: BeamScores, said: Counter[int]
    ) -> list[Choice]:
        """Choose a group's beams, and keep what of it has finished."""
        penalty = self._settings.diversity_penalty
        penalties = {token_id: penalty * number for token_id, number in said.items()}
        totals = scores.totals(group.beams, penalties=penalties)
        own = [beams[index] for index in group.beams]
        values, places = HighestScores().candidates(totals, own, self._num_candidates)
        check_possible(values[0])
        first, vocab_size = group.beams.start, totals.shape[1]
        candidates = [
            self._ends.choice(beams, first + place // vocab_size, place % vocab_size, value)
            for place, value in zip(places.tolist(), values.tolist(), strict=True)
        ]
        going_on, ended = take_ended(candidates, len(group.beams))
        for choice in ended:
            group.finished.add_choice(choice, beams)
        num_tokens = len(own[0].branch.token_ids) + 1 - self._num_prompt_tokens
        group.done = group.finished.suffices(candidates[0].score, num_tokens)
        return going_on

    def _padding(self, group: _Group) -> list[Choice]:
        """What stands for the beams of a group that is done. Others are kept from saying it."""
        choice = Choice(group.beams.start, self._settings.pad_token_id, 0.0, None, None)
        return [choice] * len(group.beams)

    def _take_live(self, chosen: Sequence[Choice], beams: Sequence[Beam]) -> None:
        """Take the beams of a last step among what was found."""
        for group in self._groups:
            if not group.done:
                for index in group.beams:
                    group.finished.add_choice(chosen[index], beams)
        self.done = True
