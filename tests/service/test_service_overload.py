"""More than fits: refused clearly, served in order, made room for; nobody starves."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import itertools
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from outrider_client import AsyncClient, Client, GenerationConfig, OverloadedError
from outrider_contract.errors import Reason
from outrider_target.settings import BatchSettings
from service.asking import ENDLESS, LOOKUP, ask, collect
from service.harness import PATIENCE, Caller, RunningService, settings_for, until
from service.refusals import refused

BLOCK = 8


@pytest.fixture
def small(folder: Path) -> Iterator[Callable[..., RunningService]]:
    """Makes services with little room; they are gone at the end of the test."""
    with_services: list[RunningService] = []

    def make(*, kv_cache_tokens: int = 4096, **batch: Any) -> RunningService:
        settings = settings_for(folder)
        settings = dataclasses.replace(
            settings,
            model=dataclasses.replace(
                settings.model, kv_cache_tokens=kv_cache_tokens, block_size=BLOCK
            ),
            batch=BatchSettings(**batch),
        )
        with_services.append(RunningService(settings).__enter__())
        return with_services[-1]

    yield make
    for service in with_services:
        service.__exit__(None, None, None)


def test_what_exceeds_the_queue_is_refused_with_a_delay_and_the_admitted_finish(
    small: Callable[..., RunningService],
) -> None:
    service = small(max_num_seqs=2, max_waiting_requests=3)
    with Caller(service.address) as caller:
        with service.gate.held():
            calls = [caller.open(ask(seed=i, max_new_tokens=10)) for i in range(5)]
            for call in calls:
                next(call)
            for _ in range(3):
                got = refused(caller, ask(max_new_tokens=1))
                assert got.code is grpc.StatusCode.RESOURCE_EXHAUSTED
                assert got.reason == Reason.OVERLOADED
                assert got.retry_after is not None
                assert got.retry_after > 0
            # What does not generate is answered meanwhile.
            assert caller.loads().kv_cache_usage >= 0
        for call in calls:
            *_, last = call
            assert last.complete.usage.completion_tokens == 10
        assert len(collect(caller.open(ask(max_new_tokens=3))).token_ids) == 3
        caller.wait_until_idle()


def test_a_client_told_to_come_back_comes_back(small: Callable[..., RunningService]) -> None:
    service = small(max_num_seqs=1, max_waiting_requests=0)
    waits: list[float] = []
    with Caller(service.address) as caller, service.gate.held():
        first = caller.open(ask(max_new_tokens=2))
        next(first)

        def wait(seconds: float) -> None:
            waits.append(seconds)
            service.gate.let(None)
            list(first)
            until(lambda: len(service.requests), lambda number: number == 0)

        with Client(service.address, sleep=wait) as client:
            completion = client.generate(
                "abc", GenerationConfig(max_new_tokens=3, clear_fields=ENDLESS)
            )
    (seconds,) = waits
    assert seconds >= 1.0  # what the server asked for
    assert completion.usage.completion_tokens == 3


def test_a_client_that_does_not_retry_sees_why(small: Callable[..., RunningService]) -> None:
    service = small(max_num_seqs=1, max_waiting_requests=0)
    with (
        Caller(service.address) as caller,
        service.gate.held(),
        Client(service.address, max_retries=0) as client,
    ):
        running = caller.open(ask(max_new_tokens=2))  # dropped, it would be cancelled
        next(running)
        with pytest.raises(OverloadedError) as caught:
            client.generate("abc")
        assert caught.value.retry_after == 1.0
        assert caught.value.reason == Reason.OVERLOADED


def test_what_waits_and_what_runs_are_counted_apart(small: Callable[..., RunningService]) -> None:
    service = small(max_num_seqs=2, max_waiting_requests=8)
    with Caller(service.address) as caller:
        with service.gate.held(after=1):
            request = ask(do_sample=True, num_return_sequences=2, max_new_tokens=30)
            calls = [caller.open(request) for _ in range(4)]
            for call in calls:
                next(call)
            service.gate.wait_until_held()
            service.gate.let(3)  # the engine hears of the others between two forwards
            loads = until(caller.loads, lambda loads: loads.num_waiting_requests == 3)
            assert loads.num_running_sequences == 2
        for call in calls:
            *_, last = call
            assert last.complete.usage.completion_tokens == 60
        assert caller.wait_until_idle().num_waiting_requests == 0


async def test_requests_are_served_in_the_order_they_came(
    small: Callable[..., RunningService],
) -> None:
    service = small(max_num_seqs=1, max_waiting_requests=20)
    ended: list[int] = []
    queued: list[float] = []
    config = GenerationConfig(max_new_tokens=8, clear_fields=ENDLESS)
    async with AsyncClient(service.address) as client:

        async def finish(stream: Any, number: int) -> None:
            completion = await stream.collect()
            ended.append(number)
            queued.append(completion.usage.queue_seconds)

        streams = []
        with service.gate.held():
            for _ in range(8):
                stream = client.stream("abc", config)
                await stream.__aenter__()
                streams.append(stream)
        await asyncio.gather(*(finish(stream, i) for i, stream in enumerate(streams)))
    assert ended == list(range(8))
    assert all(queued[1:])


@pytest.mark.parametrize("with_drafter", [False, True])
def test_when_memory_is_short_everybody_finishes_with_the_same_text_and_nothing_is_left(
    small: Callable[..., RunningService], with_drafter: bool
) -> None:
    # Room for about two and a half of the twelve.
    service = small(kv_cache_tokens=20 * BLOCK, max_num_seqs=6, max_waiting_requests=20)
    how: dict[str, Any] = {"speculation": LOOKUP} if with_drafter else {}
    requests = [
        ask(
            f"number {i} " * 2, seed=i, do_sample=i % 2 == 1, top_k=5, max_new_tokens=40,
            num_return_sequences=1 + i % 2, **how,
        )
        for i in range(8)
    ]  # fmt: skip
    with Caller(service.address) as caller:
        alone = [collect(caller.open(request)) for request in requests]
        assert caller.loads().num_preemptions == 0
        calls = []
        with service.gate.held():
            for request in requests:
                call = caller.open(request)
                calls.append(itertools.chain([next(call)], call))  # in this order
        together = in_threads([functools.partial(collect, call) for call in calls])
        loads = caller.wait_until_idle()
    for answer, expected in zip(together, alone, strict=True):
        assert [p.token_ids for p in answer.parts] == [p.token_ids for p in expected.parts]
        assert set(answer.finish_reasons) == {"LENGTH"}
    assert loads.num_preemptions > 0
    assert loads.num_preemptions == sum(a.complete.usage.num_preemptions for a in together)
    assert together[0].complete.usage.num_preemptions == 0, "the oldest never gives way"
    drafted = sum(a.complete.speculation.num_draft_tokens for a in together)
    assert (drafted > 0) == with_drafter
    assert service.serving.engine.alive


def test_a_request_that_needs_the_whole_cache_is_served_and_one_that_needs_more_is_refused(
    small: Callable[..., RunningService],
) -> None:
    service = small(kv_cache_tokens=8 * BLOCK, max_num_seqs=4)
    with Caller(service.address) as caller:
        # A block is kept for copies.
        longest = 7 * BLOCK
        with Client(service.address) as client:
            assert client.model_info().max_model_len == longest
            assert client.server_info().kv_cache_tokens == 8 * BLOCK
        answers = in_threads(
            [
                lambda: collect(caller.open(ask([9] * (longest - 20), max_new_tokens=20)))
                for _ in range(4)
            ]
        )
        assert all(len(answer.token_ids) == 20 for answer in answers)
        got = refused(caller, ask([9] * (longest - 20), max_new_tokens=21))
        assert got.reason == Reason.PROMPT_TOO_LONG
        caller.wait_until_idle()


def test_company_that_is_preempted_and_cancelled_leaves_nothing_behind(
    small: Callable[..., RunningService],
) -> None:
    service = small(kv_cache_tokens=16 * BLOCK, max_num_seqs=6, max_waiting_requests=20)
    with Caller(service.address) as caller:
        calls = [
            caller.open(ask(f"number {i} " * 2, max_new_tokens=60, speculation=LOOKUP))
            for i in range(10)
        ]
        until(caller.loads, lambda loads: loads.num_preemptions > 0)
        for call in calls[1:]:
            call.cancel()
        assert len(collect(calls[0]).token_ids) == 60
        caller.wait_until_idle()
        assert len(collect(caller.open(ask(max_new_tokens=60))).token_ids) == 60


def in_threads(jobs: list[Callable[[], Any]]) -> list[Any]:
    """Runs jobs at the same time; gives their results in order."""
    results: list[Any] = [None] * len(jobs)

    def run(index: int) -> None:
        results[index] = jobs[index]()

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive(), "somebody never finishes"
    return results
