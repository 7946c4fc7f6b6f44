"""What a batch of requests says does not depend on drafters, company, memory or chunking."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from engine.tiny_models import VOCAB_SIZE
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from outrider_runtime.model.batch import SequenceRows
from outrider_runtime.model.ragged_runner import RaggedRunner
from outrider_runtime.watermarks import GreenList, SynthId
from outrider_target.drafting.drafter import Drafter, NullDrafter
from outrider_target.engine.sequence import RequestState
from outrider_target.requests.request import DraftMethod, FinishReason, GenerationRequest
from target.batch import SPECULATION, Answer, Batch, request
from target.drafters import ScriptedDrafter, repeating, sometimes_right

NewRunner = Callable[..., RaggedRunner]

PLAIN = dataclasses.replace(SPECULATION, method=DraftMethod.NONE)
LOOKUP = dataclasses.replace(SPECULATION, method=DraftMethod.PROMPT_LOOKUP)


WATERMARKS = [
    GreenList(),
    GreenList(seeding_scheme="selfhash", context_width=2),
    SynthId(3, (17, 4, 83), context_history_size=8),
]


def some_requests(seed: int, count: int) -> list[GenerationRequest]:
    """Requests of all kinds: greedy and sampled, short and long, with processors and without."""
    chance, marks = random.Random(seed), random.Random(f"marks {seed}")
    requests = []
    for _ in range(count):
        prompt = [chance.randrange(3, VOCAB_SIZE) for _ in range(chance.randint(1, 40))]
        options: dict[str, Any] = {"do_sample": chance.random() < 0.6}
        if options["do_sample"]:
            options["temperature"] = chance.choice([0.5, 1.0, 1.7])
            options["top_k"] = chance.choice([0, 5, 50])
            options["top_p"] = chance.choice([1.0, 0.8])
        if chance.random() < 0.4:
            options["repetition_penalty"] = 1.3
        if marks.random() < 0.2:
            options["watermark"] = marks.choice(WATERMARKS)
        if chance.random() < 0.3:
            options["no_repeat_ngram_size"] = 2
        if chance.random() < 0.3:
            options["eos_token_ids"] = tuple(range(0, VOCAB_SIZE, 9))
        requests.append(
            request(
                prompt,
                new_tokens=chance.randint(1, 30),
                seed=chance.getrandbits(64),
                num_sequences=chance.choice([1, 1, 2, 3]) if options["do_sample"] else 1,
                **options,
            )
        )
    return requests


def plainly(generation: GenerationRequest) -> GenerationRequest:
    """The same request without a drafter."""
    return dataclasses.replace(generation, speculation=PLAIN)


def alone(new_runner: NewRunner, requests: list[GenerationRequest]) -> list[Answer]:
    """Each request by itself, decoded plainly: the reference."""
    return [Batch(new_runner()).run(plainly(generation))[0] for generation in requests]


def truth_of(
    requests: list[GenerationRequest], answers: list[Answer]
) -> dict[tuple[str, int], list[int]]:
    """Whole sequences by request id and sample index: what a perfect drafter knows."""
    return {
        (generation.id, index): [*generation.prompt, *token_ids]
        for generation, answer in zip(requests, answers, strict=True)
        for index, token_ids in enumerate(answer.token_ids)
    }


def assert_same(actual: list[Answer], expected: list[Answer]) -> None:
    for got, wanted in zip(actual, expected, strict=True):
        assert got.error is None
        assert got.token_ids == wanted.token_ids
        assert got.finishes == wanted.finishes


@pytest.mark.parametrize("probability", [1.0, 0.7, 0.0])
@pytest.mark.parametrize("window", [1, 4, 11])
def test_a_drafter_of_any_quality_never_changes_the_text(
    new_runner: NewRunner, probability: float, window: int
) -> None:
    requests = [
        dataclasses.replace(r, speculation=dataclasses.replace(SPECULATION, window=window))
        for r in some_requests(seed=window, count=8)
    ]
    expected = alone(new_runner, requests)
    drafter = sometimes_right(
        truth_of(requests, expected), probability=probability, vocab_size=VOCAB_SIZE, seed=1
    )
    batch = Batch(new_runner(), drafter)
    assert_same(batch.run(*requests), expected)
    totals = batch.rounds.totals
    assert totals.num_draft_tokens > 50
    if probability == 1.0:
        # A draft may still end with tokens behind the end of the text.
        assert totals.num_accepted_tokens > 0.5 * totals.num_draft_tokens
    elif probability == 0.0:
        assert totals.num_accepted_tokens < 0.1 * totals.num_draft_tokens
    assert all(session.closed for session in drafter.sessions)


@pytest.mark.parametrize("drafter", [NullDrafter(), repeating(0), repeating(5)])
def test_useless_drafters_and_none_give_the_same_text(
    new_runner: NewRunner, drafter: Drafter
) -> None:
    requests = some_requests(seed=5, count=8)
    batch = Batch(new_runner(), drafter)
    assert_same(batch.run(*requests), alone(new_runner, requests))
    if isinstance(drafter, ScriptedDrafter):
        assert batch.rounds.totals.num_draft_tokens > 50


def test_prompt_lookup_never_changes_the_text_and_is_accepted_where_text_repeats(
    new_runner: NewRunner,
) -> None:
    requests = [dataclasses.replace(r, speculation=LOOKUP) for r in some_requests(seed=9, count=12)]
    batch = Batch(new_runner())
    assert_same(batch.run(*requests), alone(new_runner, requests))
    assert batch.rounds.totals.num_accepted_tokens > 0


circumstances = given(
    seed=st.integers(0, 2**32),
    max_num_seqs=st.integers(1, 6),
    max_batched_tokens=st.sampled_from([1, 3, 16, 512]),
    num_blocks=st.sampled_from([22, 30, 60, 256]),
    probability=st.sampled_from([0.0, 0.6, 1.0]),
)


def examples(count: int) -> settings:
    return settings(
        max_examples=count,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )


def assert_circumstances_change_nothing(
    new_runner: NewRunner,
    seed: int,
    max_num_seqs: int,
    max_batched_tokens: int,
    num_blocks: int,
    probability: float,
) -> None:
    requests = some_requests(seed, count=4)
    expected = alone(new_runner, requests)
    drafter = sometimes_right(
        truth_of(requests, expected), probability=probability, vocab_size=VOCAB_SIZE, seed=seed
    )
    batch = Batch(
        new_runner(num_blocks=num_blocks),
        drafter,
        max_num_seqs=max_num_seqs,
        max_batched_tokens=max_batched_tokens,
    )
    assert_same(batch.run(*requests), expected)
    long_enough = any(len(ids) > 4 for answer in expected for ids in answer.token_ids)
    assert batch.rounds.totals.num_draft_tokens > 0 or not long_enough or max_batched_tokens == 1


@examples(6)
@circumstances
def test_neither_company_nor_chunks_nor_preemption_change_the_text(
    new_runner: NewRunner, **circumstance: Any
) -> None:
    assert_circumstances_change_nothing(new_runner, **circumstance)


@pytest.mark.slow
@examples(150)
@circumstances
def test_no_circumstance_changes_the_text_however_many_are_tried(
    new_runner: NewRunner, **circumstance: Any
) -> None:
    assert_circumstances_change_nothing(new_runner, **circumstance)


@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_a_request_bounds_its_prompt_tokens_per_round_and_nothing_else_changes(
    new_runner: NewRunner, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = [3 + i % 90 for i in range(50)]
    options: dict[str, Any] = {"new_tokens": 20, "do_sample": True, "seed": 5}
    requests = [request(prompt, **options), request(prompt, num_sequences=2, **options)]
    chunked = [dataclasses.replace(each, prefill_chunk_size=chunk) for each in requests]
    expected = alone(new_runner, requests)
    drafter = sometimes_right(
        truth_of(requests, expected), probability=0.8, vocab_size=VOCAB_SIZE, seed=3
    )
    runner = new_runner()
    forward = runner.forward
    fed: list[tuple[int, int]] = []

    def noted(batch: Sequence[SequenceRows], **options: Any) -> torch.Tensor:
        fed.extend((len(rows.token_ids), rows.num_logits) for rows in batch)
        return forward(batch, **options)

    monkeypatch.setattr(runner, "forward", noted)
    batch = Batch(runner, drafter)
    assert_same(batch.run(*chunked), expected)
    # A row is either still prompt, or its scores are wanted; the last prompt token is both.
    assert all(size - max(logits - 1, 0) <= chunk for size, logits in fed)
    before_the_last = [size for size, logits in fed if logits == 0]
    assert before_the_last == [chunk] * len(before_the_last)
    assert len(before_the_last) == 2 * (-(-len(prompt) // chunk) - 1)
    assert any(logits > 2 for _, logits in fed), "drafts are not bounded by it"
    assert batch.rounds.totals.num_accepted_tokens > 0


def test_preempted_sequences_go_on_with_the_same_text(new_runner: NewRunner) -> None:
    requests = [
        request(range(3, 13), new_tokens=60, seed=seed, do_sample=True) for seed in range(6)
    ]
    expected = alone(new_runner, requests)
    drafter = sometimes_right(
        truth_of(requests, expected), probability=0.8, vocab_size=VOCAB_SIZE, seed=3
    )
    batch = Batch(new_runner(num_blocks=40), drafter)
    answers = batch.run(*requests)
    assert_same(answers, expected)
    assert batch.scheduler.num_preemptions > 0
    assert sum(answer.num_preemptions for answer in answers) == batch.scheduler.num_preemptions
    assert batch.rounds.totals.num_accepted_tokens > 0
    assert answers[0].num_preemptions == 0, "the oldest is never the one to give way"


def test_sequences_of_a_request_share_the_blocks_of_their_prompt(new_runner: NewRunner) -> None:
    runner = new_runner()
    prompt = [3 + i % 90 for i in range(80)]
    used: list[int] = []

    def note(batch: Batch) -> None:
        used.append(runner.pool.num_blocks - runner.pool.num_free_blocks)

    batch = Batch(runner, before_round=note)
    batch.run(request(prompt, new_tokens=4, do_sample=True, num_sequences=6))
    blocks_of_prompt = len(prompt) // runner.pool.block_size
    # Six copies would take 120 blocks; shared, each sequence adds its last blocks only.
    assert max(used) <= blocks_of_prompt + 6 * 3


def test_a_later_request_does_not_overtake_an_earlier_one(new_runner: NewRunner) -> None:
    order: list[RequestState] = []

    def note(batch: Batch) -> None:
        for sequence in batch.scheduler.running:
            if sequence.state not in order:
                order.append(sequence.state)

    batch = Batch(new_runner(num_blocks=30), max_num_seqs=2, before_round=note)
    long = batch.submit(request(range(3, 83), new_tokens=20))
    second = batch.submit(request(range(3, 83), new_tokens=20))
    short = batch.submit(request([3], new_tokens=2))
    batch.finish()
    assert order == [long, second, short]


def test_time_runs_out_in_the_queue_as_well_as_in_the_batch(new_runner: NewRunner) -> None:
    batch = Batch(new_runner(), max_num_seqs=1)
    endless = batch.submit(request([3, 4], new_tokens=100, max_time=0.05))
    waiting = batch.submit(request([3, 4], new_tokens=100, max_time=0.01))
    batch.finish()
    for state in (endless, waiting):
        (finish,) = batch.answers[state].finishes
        assert finish is not None
        assert finish.reason is FinishReason.TIME
        assert batch.answers[state].counters is not None
    assert not batch.answers[waiting].token_ids[0]


def test_a_fault_in_one_request_ends_that_request_alone(new_runner: NewRunner) -> None:
    good = some_requests(seed=21, count=3)
    expected = alone(new_runner, good)
    # Everything is forbidden: no token is left to choose.
    bad = request([3, 4, 5], suppress_tokens=tuple(range(VOCAB_SIZE)), do_sample=True)
    batch = Batch(new_runner())
    answers = batch.run(good[0], bad, *good[1:])
    assert answers[1].error is not None
    assert_same([answers[0], *answers[2:]], expected)


def test_cancelling_frees_blocks_and_sessions_at_once(new_runner: NewRunner) -> None:
    runner = new_runner()
    drafter = repeating(7)
    batch = Batch(runner, drafter)
    state = batch.submit(request(range(3, 30), new_tokens=90))
    for _ in range(5):
        batch.rounds.step()
    assert runner.pool.num_free_blocks < runner.pool.num_blocks
    batch.rounds.cancel(state, report=True)
    assert runner.pool.num_free_blocks == runner.pool.num_blocks
    assert drafter.sessions[0].closed
    (finish,) = batch.answers[state].finishes
    assert finish is not None
    assert finish.reason is FinishReason.CANCELLED


def test_statistics_add_up(new_runner: NewRunner) -> None:
    generation = request(range(3, 20), new_tokens=40, do_sample=True, seed=4)
    expected = alone(new_runner, [generation])
    drafter = sometimes_right(
        truth_of([generation], expected), probability=0.7, vocab_size=VOCAB_SIZE, seed=8
    )
    (answer,) = Batch(new_runner(), drafter).run(generation)
    counters = answer.counters
    assert counters is not None
    assert counters.num_drafts > 0
    assert len(answer.token_ids[0]) == 40
    # Every round emits one token of the target's own on top of what it accepted.
    assert counters.num_rounds + counters.num_accepted_tokens == 40
    assert counters.num_rounds == counters.num_drafts + counters.num_plain_rounds
    assert sum(counters.num_accepted_tokens_per_pos) == counters.num_accepted_tokens
    assert sum(drafted for drafted, _ in counters.rounds) == counters.num_draft_tokens
    assert counters.mean_acceptance_length == pytest.approx(
        1 + counters.num_accepted_tokens / counters.num_drafts
    )


def test_drafters_are_told_of_a_new_sequence_before_its_forward(
    new_runner: NewRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that they draft while its prompt is read; what came meanwhile is taken in behind it."""
    runner = new_runner()
    drafter = repeating(7)
    batch = Batch(runner, drafter)
    seen: list[str] = []
    run_model = runner._call_model

    def watched(*arguments: Any, **options: Any) -> torch.Tensor:
        seen.append("forward")
        return run_model(*arguments, **options)

    monkeypatch.setattr(runner, "_call_model", watched)
    batch.submit(request([3, 4, 5], new_tokens=9))
    batch.rounds.step(
        before=lambda: seen.append(f"before, {len(drafter.sessions)} opened"),
        meanwhile=lambda: seen.append("meanwhile"),
    )
    assert seen == ["before, 1 opened", "forward", "meanwhile"]
