"""Speculation in beam search: right guesses save rounds, no guess changes what is found."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from engine.tiny_models import VOCAB_SIZE, build_tiny
from outrider_runtime.model.ragged_runner import RaggedRunner
from outrider_target.decoding.beams.beam import Beam
from outrider_target.decoding.beams.guesses import NO_GUESS, Guess, Guesser, guess_of
from outrider_target.decoding.branch import Branch
from outrider_target.requests.request import DraftMethod, GenerationRequest
from target.batch import Answer, Batch
from target.beam_requests import beam_request

MAKE = "outrider_target.decoding.beams.make.Guesser"
Path = tuple[int, ...]


@pytest.fixture(scope="module")
def runner() -> RaggedRunner:
    model = build_tiny("llama").to(torch.float64)
    with torch.no_grad():  # flatter: beams then part ways and meet again
        model.get_output_embeddings().weight.mul_(0.5)
    return RaggedRunner(model, num_blocks=400, block_size=4)


def plainly(generation: GenerationRequest) -> GenerationRequest:
    """The same request without speculation."""
    speculation = dataclasses.replace(generation.speculation, method=DraftMethod.NONE)
    return dataclasses.replace(generation, speculation=speculation)


def run(runner: RaggedRunner, generation: GenerationRequest) -> Answer:
    [answer] = Batch(runner).run(generation)
    assert answer.error is None
    assert runner.pool.num_free_blocks == runner.pool.num_blocks
    return answer


def assert_same(actual: Answer, expected: Answer) -> None:
    assert actual.token_ids == expected.token_ids
    assert actual.finishes == expected.finishes
    assert [one.beam_indices for one in actual.beams] == [
        one.beam_indices for one in expected.beams
    ]
    scores = [one.score for one in expected.beams]
    assert [one.score for one in actual.beams] == pytest.approx(scores, rel=1e-6)
    assert [one.token_ids for one in actual.progress] == [
        one.token_ids for one in expected.progress
    ]


@dataclass
class Scripted:
    """A guesser that is told what to guess."""

    paths: Callable[[Sequence[Beam]], list[list[Path]]] = lambda beams: [[] for _ in beams]
    steps: dict[int, list[Path]] = field(default_factory=dict)
    """Live beams of each step it saw, by their length."""
    accepted: list[int] = field(default_factory=list)

    def learn(self, beams: Sequence[Beam], log_probs: torch.Tensor) -> None:
        texts = [tuple(beam.branch.token_ids) for beam in beams]
        assert len(log_probs) == len(texts)
        self.steps[len(texts[0])] = texts

    def observe(self, num_accepted: int) -> None:
        self.accepted.append(num_accepted)

    def guess(self, beams: Sequence[Beam], most_rows: int) -> Guess:
        paths = self.paths(beams)
        return guess_of(paths) if any(paths) else NO_GUESS


def right(steps: dict[int, list[Path]], beams: Sequence[Beam], depth: int) -> list[list[Path]]:
    """For each live beam its continuations that will be live."""
    length = len(beams[0].branch.token_ids)
    found: list[list[Path]] = [[] for _ in beams]
    texts = [tuple(beam.branch.token_ids) for beam in beams]
    for text in [text for step in range(1, depth + 1) for text in steps.get(length + step, [])]:
        for own, beam in zip(found, texts, strict=True):  # groups may have the same text
            path = text[length:]
            if text[:length] != beam:
                continue
            if path[:-1] in own:
                own.remove(path[:-1])
            if path not in own:
                own.append(path)
    return found


def noisy(chance: random.Random, paths: list[list[Path]]) -> list[list[Path]]:
    """Some of it left out, some of it wrong, and more beside it."""
    changed: list[list[Path]] = []
    for own in paths:
        kept = [path for path in own if chance.random() < 0.8]
        for _ in range(chance.randrange(3)):
            wrong = tuple(chance.randrange(3, VOCAB_SIZE) for _ in range(chance.randint(1, 3)))
            kept.insert(chance.randrange(len(kept) + 1), wrong)
        changed.append(kept)
    return changed


OPTIONS: list[dict[str, Any]] = [
    {"num_beams": 2, "max_new_tokens": 17},
    {"num_beams": 4, "max_new_tokens": 16, "num_return_sequences": 3, "length_penalty": 2.0},
    {
        "num_beams": 3,
        "max_new_tokens": 20,
        "num_return_sequences": 3,
        "eos_token_id": [5, 9],
        "early_stopping": True,
        "repetition_penalty": 1.2,
    },
    {"num_beams": 3, "max_new_tokens": 16, "do_sample": True, "temperature": 1.5, "top_p": 0.9},
    {
        "num_beams": 4,
        "num_beam_groups": 2,
        "diversity_penalty": 0.5,
        "max_new_tokens": 16,
        "num_return_sequences": 4,
        "eos_token_id": [5, 9],
    },
    {
        "num_beams": 4,
        "force_words_ids": [[30, 8], [[50, 7], [50, 9, 60]]],
        "max_new_tokens": 16,
        "num_return_sequences": 3,
        "eos_token_id": [5, 9],
    },
]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("depth", [1, 3])
def test_guesses_that_are_all_right_save_rounds_and_change_nothing(
    runner: RaggedRunner, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], depth: int
) -> None:
    generation = beam_request([7, 21, 40, 7, 21], options, seed=3, progress=1)
    generation = drafted(generation)
    watching = Scripted()
    monkeypatch.setattr(MAKE, lambda *_: watching)
    plain = run(runner, generation)
    knowing = Scripted(lambda beams: right(watching.steps, beams, depth))
    monkeypatch.setattr(MAKE, lambda *_: knowing)
    answer = run(runner, generation)
    assert_same(answer, plain)
    num_steps = len(watching.steps)
    assert num_steps > 3
    assert answer.counters is not None
    # The first step has no guess; after it each round takes `depth` steps beside its own.
    assert answer.counters.num_rounds == 1 + -(-(num_steps - 1) // (depth + 1))
    assert answer.counters.num_accepted_tokens == num_steps - answer.counters.num_rounds
    assert knowing.steps == watching.steps


@pytest.mark.parametrize("seed", range(6))
def test_wrong_guesses_change_nothing(
    runner: RaggedRunner, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    chance = random.Random(seed)
    generation = drafted(
        beam_request([8, 9, 30, 8, 9], OPTIONS[seed % len(OPTIONS)], seed=seed, progress=1)
    )
    watching = Scripted()
    monkeypatch.setattr(MAKE, lambda *_: watching)
    plain = run(runner, generation)
    mixed = Scripted(lambda beams: noisy(chance, right(watching.steps, beams, 2)))
    monkeypatch.setattr(MAKE, lambda *_: mixed)
    answer = run(runner, generation)
    assert_same(answer, plain)
    assert mixed.steps == watching.steps
    assert 0 in mixed.accepted
    assert sum(mixed.accepted) > 0


def drafted(generation: GenerationRequest) -> GenerationRequest:
    """The same request with speculation, sampling included: what is exact does not depend on it."""
    speculation = dataclasses.replace(generation.speculation, method=DraftMethod.PROMPT_LOOKUP)
    return dataclasses.replace(generation, speculation=speculation)


def test_what_the_target_said_before_saves_rounds(runner: RaggedRunner) -> None:
    options = {"num_beams": 2, "max_new_tokens": 60, "num_return_sequences": 2}
    generation = beam_request([7, 21, 40] * 4, options, progress=1)
    answer, plain = run(runner, generation), run(runner, plainly(generation))
    assert_same(answer, plain)
    assert plain.counters is not None
    assert (plain.counters.num_rounds, plain.counters.num_draft_tokens) == (60, 0)
    assert answer.counters is not None
    assert answer.counters.num_accepted_tokens > 15
    assert answer.counters.num_rounds == 60 - answer.counters.num_accepted_tokens
    assert set(answer.counters.by_method) == {DraftMethod.PROMPT_LOOKUP}


@pytest.mark.parametrize(("phrases", "at_least"), [([[78, 78]], 20), ([[29], [78]], 5)])
def test_guesses_pay_beside_forced_phrases_and_change_nothing(
    runner: RaggedRunner, phrases: list[Any], at_least: int
) -> None:
    options = {
        "num_beams": 2,
        "max_new_tokens": 60,
        "num_return_sequences": 2,
        "force_words_ids": phrases,
    }
    generation = beam_request([7, 21, 40] * 4, options, progress=1)
    answer, plain = run(runner, generation), run(runner, plainly(generation))
    assert_same(answer, plain)
    assert plain.counters is not None
    assert (plain.counters.num_rounds, plain.counters.num_draft_tokens) == (60, 0)
    assert answer.counters is not None
    assert answer.counters.num_accepted_tokens >= at_least
    assert answer.counters.num_rounds == 60 - answer.counters.num_accepted_tokens


@pytest.mark.parametrize("num_blocks", [22, 30])
def test_guesses_need_no_room(runner: RaggedRunner, num_blocks: int) -> None:
    options = {"num_beams": 3, "max_new_tokens": 40, "num_return_sequences": 3}
    generations = [beam_request([seed, 21, 40] * 3, options) for seed in (5, 7)]
    expected = [run(runner, plainly(generation)) for generation in generations]
    model = build_tiny("llama").to(torch.float64)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(0.5)
    small = RaggedRunner(model, num_blocks=num_blocks, block_size=4)
    batch = Batch(small)
    for answer, plain in zip(batch.run(*generations), expected, strict=True):
        assert_same(answer, plain)
    assert batch.rounds.totals.num_accepted_tokens > 0
    assert batch.scheduler.num_preemptions > 0
    assert small.pool.num_free_blocks == small.pool.num_blocks
    small.pool.check_integrity()


@pytest.mark.parametrize(
    "options", [{"do_sample": True}, {"num_beam_groups": 2, "diversity_penalty": 1.0}]
)
def test_sampled_and_group_beams_are_not_guessed_at(
    runner: RaggedRunner, options: dict[str, Any]
) -> None:
    generation = beam_request([7, 21] * 6, {"num_beams": 2, "max_new_tokens": 12, **options})
    answer = run(runner, generation)
    assert answer.counters is not None
    assert answer.counters.num_draft_tokens == 0


@pytest.mark.parametrize("most_rows", [0, 3, 7, 100])
def test_a_guess_costs_no_more_rows_than_it_may(most_rows: int) -> None:
    generation = beam_request([7, 21, 40] * 4, {"num_beams": 2, "max_new_tokens": 9})
    guesser = Guesser(generation.prompt, generation.parameters)
    text = [*generation.prompt, 7]
    beams = [Beam(Branch(text), score, (), None) for score in (-0.1, -0.2)]
    log_probs = torch.full((2, VOCAB_SIZE), -9.0)
    log_probs[:, [21, 22, 23]] = torch.tensor([-0.5, -1.0, -1.2])
    guesser.learn(beams, log_probs)
    paths = guesser.guess(beams, most_rows).paths
    # A copy of a branch is fed the last token again.
    num_rows = sum(sum(map(len, own)) + max(0, len(own) - 1) for own in paths)
    assert num_rows <= most_rows
    assert (num_rows > 0) == (most_rows > 3)


def test_a_guess_ends_before_the_length() -> None:
    generation = beam_request([7, 21, 40] * 4, {"num_beams": 2, "max_new_tokens": 3})
    guesser = Guesser(generation.prompt, generation.parameters)
    for num_new, depth in ((1, 1), (2, 0)):
        beams = [Beam(Branch([*generation.prompt, *[7, 21][:num_new]]), 0.0, (), None)] * 2
        guesser.learn(beams, torch.zeros(2, VOCAB_SIZE).index_fill_(1, torch.tensor([21]), 5.0))
        guess = guesser.guess(beams, 100)
        assert max((len(path) for own in guess.paths for path in own), default=0) == depth
