"""Beginnings that requests have in common are computed once; no text changes, nothing leaks."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from typing import Any

import pytest
from engine.tiny_models import VOCAB_SIZE
from outrider_runtime.model.ragged_runner import RaggedRunner
from outrider_target.engine.prefixes import PrefixNames
from outrider_target.requests.request import DraftMethod, GenerationRequest
from target.batch import SPECULATION, Batch, request
from target.drafters import repeating, sometimes_right

NewRunner = Callable[..., RaggedRunner]

ALICE, BOB = b"alice", b"bob"
BEGINNING = [3 + i * 7 % 50 for i in range(40)]
PLAIN = dataclasses.replace(SPECULATION, method=DraftMethod.NONE, tenant=ALICE)
DRAFTED = dataclasses.replace(SPECULATION, tenant=ALICE)


def of(tenant: bytes, prompt: list[int], **options: Any) -> GenerationRequest:
    speculation = dataclasses.replace(PLAIN, tenant=tenant)
    return request(prompt, speculation=speculation, new_tokens=8, **options)


def cached_tokens(batch: Batch, generation: GenerationRequest) -> int:
    return batch.run(generation)[0].num_cached_prompt_tokens


def test_a_beginning_is_computed_once(new_runner: NewRunner) -> None:
    batch = Batch(new_runner())
    size = batch.runner.pool.block_size
    assert cached_tokens(batch, of(ALICE, [*BEGINNING, 5])) == 0
    whole = len(BEGINNING) // size * size
    assert cached_tokens(batch, of(ALICE, [*BEGINNING, 6])) == whole
    # The last token is always fed: its row is the first.
    exactly = BEGINNING[:whole]
    assert cached_tokens(batch, of(ALICE, exactly)) == whole - size
    counters = batch.scheduler.prefix_cache
    assert counters.num_hit_tokens == 2 * whole - size
    assert counters.num_query_tokens == 2 * len(BEGINNING) + 2 + whole


def test_an_output_is_the_beginning_of_the_next_turn(new_runner: NewRunner) -> None:
    batch = Batch(new_runner())
    size = batch.runner.pool.block_size
    first = of(ALICE, BEGINNING)
    output = batch.run(first)[0].token_ids[0]
    turn = [*BEGINNING, *output, 9, 9]
    expected = (len(BEGINNING) + len(output) - 1) // size * size
    assert expected > len(BEGINNING)
    assert cached_tokens(batch, of(ALICE, turn)) == expected


def test_nobody_sees_what_another_tenant_left(new_runner: NewRunner) -> None:
    batch = Batch(new_runner())
    prompt = [*BEGINNING, 5]
    assert cached_tokens(batch, of(ALICE, prompt)) == 0
    assert cached_tokens(batch, of(BOB, prompt)) == 0
    assert cached_tokens(batch, of(b"", prompt)) == 0
    assert cached_tokens(batch, of(b"", prompt)) == 0, "who has no tenant shares nothing"
    assert cached_tokens(batch, of(BOB, prompt)) > 0


def test_it_can_be_turned_off(new_runner: NewRunner) -> None:
    batch = Batch(new_runner(), prefix_caching=False)
    prompt = [*BEGINNING, 5]
    assert [cached_tokens(batch, of(ALICE, prompt)) for _ in range(2)] == [0, 0]


def test_draft_tokens_that_were_not_accepted_have_no_name(new_runner: NewRunner) -> None:
    runner = new_runner()
    pool = runner.pool
    known = PrefixNames(pool.block_size)
    wrong = repeating(4)
    batch = Batch(runner, wrong)
    generation = dataclasses.replace(
        request(BEGINNING, new_tokens=30, speculation=DRAFTED),
        speculation=dataclasses.replace(DRAFTED, window=2 * pool.block_size),
    )
    (answer,) = batch.run(generation)
    assert answer.counters is not None
    assert answer.counters.num_draft_tokens > 2 * pool.block_size
    text = [*BEGINNING, *answer.token_ids[0]]
    names: list[bytes] = []
    known.extend(names, ALICE, text, len(text))
    handle = pool.create()
    shared = pool.adopt(handle, names)
    pool.free(handle)
    assert shared >= len(BEGINNING)
    assert len(pool._names) == shared // pool.block_size, "nothing but decided text is named"


@pytest.mark.parametrize("num_blocks", [None, 40])
def test_texts_are_the_same_with_and_without_it(
    new_runner: NewRunner, num_blocks: int | None
) -> None:
    """Common beginnings in company, in a full pool as well, with drafts right and wrong."""
    chance = random.Random(7)
    prompts = [
        [*BEGINNING[: chance.randrange(1, 40)], *chance.choices(range(3, VOCAB_SIZE), k=5)]
        for _ in range(24)
    ]

    def requests(speculation: Any) -> list[GenerationRequest]:
        return [
            request(
                prompt,
                new_tokens=12,
                seed=seed,
                speculation=speculation,
                do_sample=seed % 2 == 1,
                num_sequences=1 + 2 * (seed % 4 == 3),
            )
            for seed, prompt in enumerate(prompts)
        ]

    options = {} if num_blocks is None else {"num_blocks": num_blocks}
    alone = [
        Batch(new_runner(), prefix_caching=False).run(each)[0].token_ids for each in requests(PLAIN)
    ]
    drafted = requests(DRAFTED)
    truth = {
        (each.id, index): [*each.prompt, *tokens]
        for each, found in zip(drafted, alone, strict=True)
        for index, tokens in enumerate(found)
    }
    drafter = sometimes_right(truth, probability=0.7, vocab_size=VOCAB_SIZE, seed=1)
    batch = Batch(new_runner(**options), drafter)
    answers = [*batch.run(*drafted[:12]), *batch.run(*drafted[12:])]
    assert [answer.token_ids for answer in answers] == alone
    assert batch.scheduler.prefix_cache.num_hit_tokens > 200
    assert batch.rounds.totals.num_accepted_tokens > 50
    if num_blocks is not None:
        assert batch.scheduler.num_preemptions > 0
