"""Beam search and beam sampling: transformers' `generate`, alone, in company, under preemption."""

from __future__ import annotations

import copy
import dataclasses
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pytest
import torch
from engine.tiny_models import VOCAB_SIZE, build_tiny
from outrider_runtime.errors import InvalidRequest, UnsupportedOption
from outrider_runtime.model.ragged_runner import RaggedRunner
from outrider_target.requests.request import FinishReason
from outrider_target.requests.room import Room
from sampling.chi_square import FALSE_ALARM, p_value
from target.batch import Answer, Batch, request
from target.beam_requests import beam_request
from target.drafters import sometimes_right
from transformers import GenerationConfig, PreTrainedModel

Options = Mapping[str, Any]


class Found(NamedTuple):
    """A returned sequence."""

    token_ids: list[int]
    beam_indices: list[int]
    score: float


class Pair:
    """One model twice: in our engine and in transformers' own hands."""

    def __init__(self, architecture: str) -> None:
        model: PreTrainedModel = build_tiny(architecture).to(torch.float64)
        with torch.no_grad():  # flatter: beams then part ways and meet again
            model.get_output_embeddings().weight.mul_(0.5)
        self.plain = copy.deepcopy(model)
        self.plain.generation_config = GenerationConfig()
        self.runner = RaggedRunner(model, num_blocks=400, block_size=4)
        self.model = model

    def expected(self, prompt: Sequence[int], options: Options, **functions: Any) -> list[Found]:
        """What transformers returns, given functions of its caller's."""
        config = GenerationConfig(
            **options, output_scores=True, return_dict_in_generate=True, pad_token_id=0
        )
        with torch.no_grad():
            output = self.plain.generate(
                torch.tensor([list(prompt)]), generation_config=config, **functions
            )
        found = []
        for row, indices, score in zip(
            output.sequences, output.beam_indices, output.sequences_scores, strict=True
        ):
            number = int((indices >= 0).sum())
            token_ids = row[len(prompt) : len(prompt) + number].tolist()
            found.append(Found(token_ids, indices[:number].tolist(), float(score)))
        return found


def found(answer: Answer) -> list[Found]:
    assert answer.error is None
    return [
        Found(list(token_ids), list(beam.beam_indices), beam.score)
        for token_ids, beam in zip(answer.token_ids, answer.beams, strict=True)
    ]


def assert_same(actual: list[Found], expected: list[Found]) -> None:
    # Of beams that were never possible all are equally bad, and any may come first.
    assert [one.token_ids for one in actual] == [one.token_ids for one in expected]
    for ours, theirs in zip(actual, expected, strict=True):
        assert ours.beam_indices == theirs.beam_indices or theirs.score < -1e7
    scores = [one.score for one in expected]
    assert [one.score for one in actual] == pytest.approx(scores, rel=1e-5, abs=1e-5)


def cases(count: int, seed: int) -> list[tuple[list[int], dict[str, Any]]]:
    """Prompts and options of all kinds."""
    chance = random.Random(seed)
    return [_case(chance) for _ in range(count)]


def _case(chance: random.Random) -> tuple[list[int], dict[str, Any]]:
    prompt = [chance.randrange(3, VOCAB_SIZE) for _ in range(chance.randint(1, 20))]
    num_beams = chance.choice([2, 3, 4, 5])
    options: dict[str, Any] = {
        "num_beams": num_beams,
        "num_return_sequences": chance.randint(1, num_beams),
        "max_new_tokens": chance.randint(1, 14),
    }
    eos = chance.sample(range(VOCAB_SIZE), chance.choice([1, 4, 9]))
    some: dict[str, tuple[float, Any]] = {
        "early_stopping": (0.7, chance.choice([True, False, "never"])),
        "length_penalty": (0.7, chance.choice([0.0, -1.0, 0.5, 2.0])),
        "repetition_penalty": (0.3, 1.4),
        "no_repeat_ngram_size": (0.3, 2),
        "watermarking_config": (0.2, {"bias": 3.0}),
        "renormalize_logits": (0.2, True),
        # Two phrases even where the prompt begins with that token.
        "sequence_bias": (0.2, [[[eos[0]], 2.5], [[prompt[0], eos[0]], -3.0]]),
        "suppress_tokens": (0.2, [prompt[-1], 5, 6]),
    }
    if chance.random() < 0.7:
        options["eos_token_id"] = eos
        some["min_new_tokens"] = (0.3, min(4, options["max_new_tokens"]))
        some["forced_eos_token_id"] = (0.2, eos[0])
        some["exponential_decay_length_penalty"] = (0.2, (2, 1.3))
    return prompt, options | {
        name: value for name, (probability, value) in some.items() if chance.random() < probability
    }


@pytest.fixture(scope="module")
def llama() -> Pair:
    return Pair("llama")


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2"])
def test_beam_search_returns_what_transformers_returns(architecture: str) -> None:
    pair = Pair(architecture)
    for prompt, options in cases(4, seed=len(architecture)):
        [answer] = Batch(pair.runner).run(beam_request(prompt, options))
        assert_same(found(answer), pair.expected(prompt, options))


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "mistral", "gemma2", "qwen2", "phi"])
def test_beam_search_returns_what_transformers_returns_whatever_the_options(
    architecture: str,
) -> None:
    pair = Pair(architecture)
    for prompt, options in cases(120, seed=3):
        [answer] = Batch(pair.runner).run(beam_request(prompt, options))
        assert_same(found(answer), pair.expected(prompt, options))


@pytest.mark.parametrize(("num_blocks", "budget"), [(400, 512), (44, 512), (400, 5)])
def test_beams_and_others_in_one_batch_say_what_they_say_alone(
    llama: Pair, num_blocks: int, budget: int
) -> None:
    beams = [(prompt, {**options, "max_new_tokens": 14}) for prompt, options in cases(3, seed=11)]
    others = [
        request(range(3, 20), new_tokens=30, seed=5, do_sample=True, num_sequences=2),
        request(range(9, 14), new_tokens=25),
    ]
    alone = [Batch(llama.runner).run(one)[0].token_ids for one in others]
    drafter = sometimes_right(
        {
            (one.id, index): [*one.prompt, *token_ids]
            for one, texts in zip(others, alone, strict=True)
            for index, token_ids in enumerate(texts)
        },
        probability=0.7,
        vocab_size=VOCAB_SIZE,
        seed=2,
    )
    runner = RaggedRunner(llama.model, num_blocks=num_blocks, block_size=4)
    batch = Batch(runner, drafter, max_num_seqs=20, max_batched_tokens=budget)
    answers = batch.run(*others, *(beam_request(*beam) for beam in beams))
    assert [answer.token_ids for answer in answers[:2]] == alone
    assert batch.rounds.totals.num_accepted_tokens > 0
    for answer, beam in zip(answers[2:], beams, strict=True):
        assert_same(found(answer), llama.expected(*beam))
    preemptions = sum(answer.num_preemptions for answer in answers[2:])
    assert (preemptions > 0) == (num_blocks == 44)


SAMPLING = {"do_sample": True, "num_beams": 2, "max_new_tokens": 1, "length_penalty": 0.0}


def test_beam_sampling_draws_without_replacement_as_transformers_does(llama: Pair) -> None:
    prompt, options = [5, 9, 30], {**SAMPLING, "top_k": 3, "temperature": 2.0}
    options["num_return_sequences"] = 2
    with torch.no_grad():
        logits = llama.plain(torch.tensor([prompt])).logits[0, -1] / 2.0
    kept = logits.topk(3)
    probabilities = dict(zip(kept.indices.tolist(), kept.values.softmax(-1).tolist(), strict=True))
    # Both drawn tokens are returned, the more probable one first.
    counts: Counter[frozenset[int]] = Counter()
    number = 600
    for start in range(0, number, 100):
        answers = Batch(llama.runner, max_num_seqs=64).run(
            *(beam_request(prompt, options, seed=seed) for seed in range(start, start + 100))
        )
        counts.update(frozenset(ids[0] for ids in answer.token_ids) for answer in answers)
    expected = {
        frozenset({a, b}): p * q / (1 - p) + p * q / (1 - q)
        for a, p in probabilities.items()
        for b, q in probabilities.items()
        if a < b
    }
    assert set(counts) <= set(expected)
    observed = [counts[pair] for pair in expected]
    assert p_value(observed, list(expected.values())) > FALSE_ALARM


def test_beam_sampling_repeats_itself_for_a_seed_and_not_for_another(llama: Pair) -> None:
    prompt = [4, 8, 15, 16]
    options = {**SAMPLING, "num_beams": 3, "max_new_tokens": 12, "temperature": 1.5, "top_p": 0.9}
    batch = Batch(RaggedRunner(llama.model, num_blocks=18, block_size=4))
    first, again, other = batch.run(
        *(beam_request(prompt, options, seed=seed) for seed in (7, 7, 8))
    )
    [alone] = Batch(llama.runner).run(beam_request(prompt, options, seed=7))
    assert found(first) == found(again) == found(alone)
    assert first.token_ids != other.token_ids
    assert batch.scheduler.num_preemptions > 0


def test_warpers_keep_a_token_that_does_not_end_the_text(llama: Pair) -> None:
    """transformers: with beams, truncations keep at least one token more than there are eos."""
    options = {**SAMPLING, "top_k": 1, "eos_token_id": [3, 4], "num_return_sequences": 2}
    drawn = {
        token_ids[0]
        for seed in range(60)
        for answer in Batch(llama.runner).run(beam_request([5, 9], options, seed=seed))
        for token_ids in answer.token_ids
    }
    with torch.no_grad():
        best = llama.plain(torch.tensor([[5, 9]])).logits[0, -1].topk(3).indices
    assert drawn == set(best.tolist())


def test_progress_tells_the_best_so_far_and_the_end_tells_all(llama: Pair) -> None:
    prompt, options = [7, 21, 40], {"num_beams": 3, "max_new_tokens": 9}
    [answer] = Batch(llama.runner).run(beam_request(prompt, options, progress=2))
    assert [len(progress.token_ids) for progress in answer.progress] == [2, 4, 6, 8]
    assert not any(progress.finished for progress in answer.progress)
    assert len(answer.token_ids) == 1
    assert len(answer.token_ids[0]) == 9
    assert answer.finishes[0] is not None
    assert answer.finishes[0].reason is FinishReason.LENGTH


@pytest.mark.parametrize("by", ["time", "caller"])
def test_a_search_that_is_ended_returns_the_best_it_has(llama: Pair, by: str) -> None:
    generation = beam_request(
        [7, 21, 40], {"num_beams": 3, "max_new_tokens": 80, "num_return_sequences": 2}, progress=1
    )
    if by == "time":
        generation = dataclasses.replace(generation, max_time=3600.0)
    batch = Batch(llama.runner)
    state = batch.submit(generation)
    for _ in range(8):
        batch.rounds.step()
    if by == "time":
        state.arrived_at -= 3600.0
        batch.rounds.step()
    else:
        batch.rounds.cancel(state, report=True)
    answer = batch.answers[state]
    assert llama.runner.pool.num_free_blocks == llama.runner.pool.num_blocks
    reason = FinishReason.TIME if by == "time" else FinishReason.CANCELLED
    assert [finish and finish.reason for finish in answer.finishes] == [reason] * 2
    num_steps = len(answer.progress)  # more than rounds, where guesses were right
    assert num_steps >= 8
    assert [len(token_ids) for token_ids in answer.token_ids] == [num_steps] * 2
    assert list(answer.token_ids[0]) == list(answer.progress[-1].token_ids)
    assert answer.counters is not None


def test_options_that_leave_no_token_end_that_request_alone(llama: Pair) -> None:
    options = {"num_beams": 2, "max_new_tokens": 5, "bad_words_ids": [[i] for i in range(97)]}
    company = beam_request([5, 6], {"num_beams": 2, "max_new_tokens": 5})
    bad, good = Batch(llama.runner).run(beam_request([5, 6], options), company)
    assert bad.error is not None
    assert good.error is None


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"num_beams": 0}, "num_beams"),
        ({"num_beams": 17}, "num_beams"),
        ({"num_beams": 3, "num_return_sequences": 4}, "num_return_sequences"),
        ({"num_beams": 2, "length_penalty": 1e9}, "length_penalty"),
        ({"num_beams": 2, "length_penalty": -1e9}, "length_penalty"),
        ({"num_beams": 2, "early_stopping": "always"}, "early_stopping"),
        ({"num_beams": 2, "penalty_alpha": 0.5, "top_k": 4}, "penalty_alpha"),
        ({"num_beams": 2, "output_scores": True}, "output_scores"),
        ({"num_return_sequences": 2}, "num_return_sequences"),
    ],
)
def test_what_cannot_be_is_refused_by_name(options: Options, field: str) -> None:
    with pytest.raises((InvalidRequest, UnsupportedOption)) as refusal:
        beam_request([3, 4, 5], options)
    assert refusal.value.field == f"generation_config.{field}"


def test_beams_that_could_outgrow_the_cache_are_refused_and_those_that_fit_just_run(
    llama: Pair,
) -> None:
    prompt, options = list(range(3, 14)), {"num_beams": 5, "max_new_tokens": 20}
    # 2 blocks of the prompt in common, 5 times 6 of their own, one for copies.
    with pytest.raises(InvalidRequest, match="do not fit into the KV cache; at most 4 do"):
        beam_request(prompt, options, room=Room(16, 32, 4))
    generation = beam_request(prompt, options, room=Room(16, 33, 4))
    [answer] = Batch(RaggedRunner(llama.model, num_blocks=33, block_size=4)).run(generation)
    assert_same(found(answer), llama.expected(prompt, options))
    assert answer.num_preemptions == 0
