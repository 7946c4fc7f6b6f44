"""Constrained beam search: texts that hold given phrases.

As in transformers 4.56, the last release that has it, `ConstrainedBeamSearchScorer`, with its
dynamic beam allocation (Post and Vilar, 2018, arXiv 1804.06609): beside the best continuations each
step looks at those that bring a phrase forward, and gives the beams to texts at all stages of the
way in turn. Two things differ. Stop strings and stopping criteria end a hypothesis as an
end-of-sequence token does. And forms of a phrase that begin alike are told apart where they part;
there, trying one of them spoils the record of the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from outrider_runtime.sampling_parameters import SamplingParameters

from outrider_target.decoding.beams.beam import Beam, Choice, Hypothesis
from outrider_target.decoding.beams.draws import HighestScores
from outrider_target.decoding.beams.ends import Ends
from outrider_target.decoding.beams.finished import Finished, best_first
from outrider_target.decoding.beams.forced import Phrase, Progress
from outrider_target.decoding.beams.going_on import has_ended, take_ended
from outrider_target.decoding.beams.rule import HOPELESS, check_possible
from outrider_target.decoding.beams.scores import BeamScores
from outrider_target.decoding.beams.settings import BeamSettings
from outrider_target.requests.request import Finish


class ConstrainedBeamSearch:
    """Texts that hold all phrases are finished; others only fill up what is returned."""

    def __init__(
        self,
        settings: BeamSettings,
        parameters: SamplingParameters,
        ends: Ends,
        prompt: Sequence[int],
    ) -> None:
        self._settings = settings
        self._ends = ends
        self._num_prompt_tokens = len(prompt)
        self._max_length = parameters.max_length
        self._num_candidates = max(2, 1 + len(parameters.eos_token_ids)) * settings.num_beams
        phrases = tuple(map(Phrase, settings.forced_phrases))
        self._longest = max(phrase.length for phrase in phrases)
        self._progress = [Progress(phrases).after_all(prompt)] * settings.num_beams
        self._finished = Finished(
            settings,
            size=settings.num_beams,
            num_prompt_tokens=len(prompt),
            max_length=parameters.max_length,
        )
        self.first_scores: Sequence[float] = [0.0] + [HOPELESS] * (settings.num_beams - 1)
        self.done = False

    def step(self, beams: Sequence[Beam], scores: BeamScores) -> Sequence[Choice]:
        """See `BeamRule`."""
        totals = scores.totals(range(len(beams)))
        values, places = HighestScores().candidates(totals, beams, self._num_candidates)
        check_possible(values[0])
        vocab_size = totals.shape[1]
        candidates = [
            self._ends.choice(beams, place // vocab_size, place % vocab_size, value)
            for place, value in zip(places.tolist(), values.tolist(), strict=True)
        ]
        best, ended = take_ended(candidates, len(beams))
        forward = self._forward(best, beams, totals)
        known = {(choice.parent, choice.token_id) for choice in ended}
        ended += [
            choice
            for choice in forward
            if has_ended(choice) and (choice.parent, choice.token_id) not in known
        ]
        for choice in ended:
            if self._after(choice).complete:
                self._finished.add_choice(choice, beams)
        chosen = self._shared_out(best, [one for one in forward if not has_ended(one)])
        length = len(beams[0].branch.token_ids) + 1
        self.done = self._finished.suffices(candidates[0].score, length - self._num_prompt_tokens)
        self._progress = [self._after(choice) for choice in chosen]
        if not self.done and length >= self._max_length:
            self._take_live(lambda index: self._finished.add_choice(chosen[index], beams))
        return chosen

    def close(self, beams: Sequence[Beam], finish: Finish) -> None:
        """See `BeamRule`."""
        self._take_live(lambda index: self._finished.add_beam(beams[index], finish))

    def best(self, beams: Sequence[Beam]) -> Hypothesis:
        """See `BeamRule`."""
        penalty = self._settings.length_penalty
        live = [beam.hypothesis(self._num_prompt_tokens, penalty) for beam in beams]
        return best_first([*live, *self._finished.hypotheses])[0]

    def found(self) -> Sequence[Hypothesis]:
        """See `BeamRule`."""
        return best_first(self._finished.hypotheses)[: self._settings.num_return_sequences]

    def _after(self, choice: Choice) -> Progress:
        return self._progress[choice.parent].after(choice.token_id)

    def _forward(
        self, best: Sequence[Choice], beams: Sequence[Beam], totals: torch.Tensor
    ) -> list[Choice]:
        """The continuations that bring a phrase forward, of texts not among the best."""
        texts = [tuple(beam.branch.token_ids) for beam in beams]
        seen = {(texts[choice.parent], choice.token_id) for choice in best}
        wanted: list[tuple[int, int]] = []
        for index, progress in enumerate(self._progress):
            for token_id in progress.next_tokens():
                if (text := (texts[index], token_id)) not in seen:
                    seen.add(text)
                    wanted.append((index, token_id))
        if not wanted:
            return []
        rows, token_ids = zip(*wanted, strict=True)
        values = totals[list(rows), list(token_ids)].tolist()
        return [
            self._ends.choice(beams, index, token_id, value)
            for (index, token_id), value in zip(wanted, values, strict=True)
        ]

    def _shared_out(self, best: Sequence[Choice], forward: Sequence[Choice]) -> list[Choice]:
        """The beams to be: the best text of each stage, then the second best, and so on.

        A stage is a run of equal ones in the order by stage and score.
        """
        if not forward:
            return list(best)
        choices = [*best, *forward]
        banks = torch.tensor([self._after(choice).bank(self._longest) for choice in choices])
        # float32 and in this order, so that near ties fall as in transformers.
        keys = banks * 100 + torch.tensor([choice.score for choice in choices])
        order = keys.sort(descending=True, stable=True).indices.tolist()
        ranks: list[tuple[int, int]] = []
        for place, index in enumerate(order):
            same = place > 0 and banks[index] == banks[order[place - 1]]
            ranks.append((ranks[-1][0] + 1 if same else 0, place))
        return [choices[order[place]] for _, place in sorted(ranks)[: len(best)]]

    def _take_live(self, take: Callable[[int], None]) -> None:
        """Take live beams among what was found; all of them where too few hold the phrases."""
        complete = [index for index, progress in enumerate(self._progress) if progress.complete]
        for index in complete:
            take(index)
        if len(complete) < self._settings.num_return_sequences:
            for index, progress in enumerate(self._progress):
                if not progress.complete:
                    take(index)
        self.done = True
