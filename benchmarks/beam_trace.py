"""A plain beam search on the target's own strategy, and which beams were alive before each step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from outrider_runtime.model.ragged_runner import RaggedRunner
from outrider_runtime.sampling_parameters import SamplingParameters
from outrider_target.decoding.beams.beam import Beam, Choice, Hypothesis
from outrider_target.decoding.beams.draws import HighestScores
from outrider_target.decoding.beams.ends import Ends
from outrider_target.decoding.beams.rule import BeamRule
from outrider_target.decoding.beams.scores import BeamScores
from outrider_target.decoding.beams.search import BeamSearch
from outrider_target.decoding.beams.settings import BeamSettings, EarlyStopping
from outrider_target.decoding.beams.strategy import BeamStrategy
from outrider_target.drafting.drafter import NO_DRAFT
from outrider_target.engine.branch_places import BranchPlaces
from outrider_target.engine.prefixes import PrefixNames
from outrider_target.requests.request import Finish


class Live(NamedTuple):
    """A live beam before a step."""

    token_ids: tuple[int, ...]
    """Prompt and text."""
    score: float


class Step(NamedTuple):
    """A step of a beam search.

    Attributes:
        live: The live beams before it; before the first one all are the prompt.
        log_probs: Of all their continuations, [beams, vocab].
        choices: The beams that went on.
    """

    live: Sequence[Live]
    log_probs: torch.Tensor
    choices: Sequence[Choice]

    @property
    def one_child_each(self) -> bool:
        """Whether each beam had exactly one child."""
        parents = [choice.parent for choice in self.choices]
        return len(set(parents)) == len(parents)


class _Watched:
    """A rule, and the live beams it was shown."""

    def __init__(self, inner: BeamRule) -> None:
        self._inner = inner
        self.first_scores = inner.first_scores
        self.done = inner.done
        self.steps: list[Step] = []

    def step(self, beams: Sequence[Beam], scores: BeamScores) -> Sequence[Choice]:
        live = [Live(tuple(beam.branch.token_ids), beam.score) for beam in beams]
        # Processors do nothing here: without the beams' own scores these are log-probabilities.
        own = torch.tensor([beam.score for beam in beams])[:, None]
        choices = self._inner.step(beams, scores)
        self.done = self._inner.done
        self.steps.append(Step(live, scores.totals(range(len(beams))) - own, choices))
        return choices

    def close(self, beams: Sequence[Beam], finish: Finish) -> None:
        self._inner.close(beams, finish)

    def best(self, beams: Sequence[Beam]) -> Hypothesis:
        return self._inner.best(beams)

    def found(self) -> Sequence[Hypothesis]:
        return self._inner.found()


def trace(
    runner: RaggedRunner,
    prompt: Sequence[int],
    *,
    num_beams: int,
    new_tokens: int,
    eos_token_ids: tuple[int, ...],
) -> list[Step]:
    """Search to the end, without speculation."""
    parameters = SamplingParameters(
        max_length=len(prompt) + new_tokens, eos_token_ids=eos_token_ids
    )
    settings = BeamSettings(
        num_beams,
        num_return_sequences=1,
        length_penalty=1.0,
        early_stopping=EarlyStopping.NO,
        num_groups=1,
        diversity_penalty=0.0,
        pad_token_id=0,
        forced_phrases=(),
        progress_interval=0,
    )
    ends = Ends(parameters, None)
    rule = _Watched(
        BeamSearch(settings, parameters, HighestScores(), ends, num_prompt_tokens=len(prompt))
    )
    strategy = BeamStrategy(settings, parameters, rule, prompt, None)
    places = BranchPlaces(runner.pool, PrefixNames(runner.pool.block_size, enabled=False))
    held = strategy.branches
    places.place(held)
    finished = False
    while not finished:
        rows = strategy.rows(NO_DRAFT)
        logits = runner.forward(places.feeds(held, rows.branches))
        (own,) = strategy.selector(logits, [rows])
        finished = strategy.commit((), own).finish is not None
        if finished:
            places.free(held)
        else:
            places.follow(held, strategy.branches)
            held = strategy.branches
    return rule.steps
