"""A plain beam search on the target's own strategy, and which beams were alive before each step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from outrider_runtime.model.runner import RaggedRunner
from outrider_runtime.sampling_parameters import SamplingParameters
from outrider_target.decoding.beams.beam import Beam, Choice, Hypothesis
from outrider_target.decoding.beams.draws import HighestScores
from outrider_target.decoding.beams.ends import Ends
from outrider_target.decoding.beams.rule import BeamRule
from outrider_target.decoding.beams.scores import BeamScores
from outrider_target.decoding.beams.search import BeamSearch
from outrider_target.decoding.beams.settings import BeamSettings, EarlyStopping
from outrider_target.decoding.beams.strategy import BeamStrategy
from outrider_target.engine.branch_places import BranchPlaces
from outrider_target.requests.request import Finish


class Live(NamedTuple):
    """A live beam before a step."""

    token_ids: tuple[int, ...]
    """Prompt and text."""
    score: float


@dataclass
class _Watched:
    """A rule, and the live beams it was shown."""

    inner: BeamRule
    steps: list[list[Live]] = field(default_factory=list)
    parents: list[list[int]] = field(default_factory=list)

    @property
    def first_scores(self) -> Sequence[float]:
        return self.inner.first_scores

    @property
    def done(self) -> bool:
        return self.inner.done

    def step(self, beams: Sequence[Beam], scores: BeamScores) -> Sequence[Choice]:
        self.steps.append([Live(tuple(beam.branch.token_ids), beam.score) for beam in beams])
        choices = self.inner.step(beams, scores)
        self.parents.append([choice.parent for choice in choices])
        return choices

    def close(self, beams: Sequence[Beam], finish: Finish) -> None:
        self.inner.close(beams, finish)

    def best(self, beams: Sequence[Beam]) -> Hypothesis:
        return self.inner.best(beams)

    def found(self) -> Sequence[Hypothesis]:
        return self.inner.found()


class Trace(NamedTuple):
    """A beam search that is over.

    Attributes:
        steps: The live beams before each step; before the first one all are the prompt.
        parents: Of the beams that each step chose.
    """

    steps: Sequence[Sequence[Live]]
    parents: Sequence[Sequence[int]]

    @property
    def num_one_child_each(self) -> int:
        """Steps in which each beam had exactly one child."""
        return sum(len(set(parents)) == len(parents) for parents in self.parents)


def trace(
    runner: RaggedRunner,
    prompt: Sequence[int],
    *,
    num_beams: int,
    new_tokens: int,
    eos_token_ids: tuple[int, ...],
) -> Trace:
    """Search to the end."""
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
        progress_interval=0,
    )
    ends = Ends(parameters, None)
    rule = _Watched(
        BeamSearch(settings, parameters, HighestScores(), ends, num_prompt_tokens=len(prompt))
    )
    strategy = BeamStrategy(settings, parameters, rule, prompt, None)
    places = BranchPlaces(runner.pool)
    held = strategy.branches
    places.place(held)
    finished = False
    while not finished:
        rows = strategy.rows(())
        logits = runner.forward(places.feeds(held, rows.branches))
        (own,) = strategy.selector(logits, [rows])
        finished = strategy.commit((), own).finish is not None
        if finished:
            places.free(held)
        else:
            places.follow(held, strategy.branches)
            held = strategy.branches
    return Trace(rule.steps, rule.parents)
