"""However a call ends, everything it held is free at once, and the others never notice."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from outrider.v1 import generation_pb2 as pb
from outrider.v1 import speculation_pb2
from outrider_client import (
    AsyncClient,
    Client,
    DeadlineExceededError,
    FinishReason,
    GenerationConfig,
    RequestCancelledError,
)
from outrider_target.requests.request import DraftMethod
from service.asking import ENDLESS, LOOKUP, ask, collect
from service.harness import PATIENCE, Caller, RunningService, until
from service.tiny_folder import LONG_WORD, LONG_WORD_TEXT
from target.drafters import ScriptedSession

LONG = GenerationConfig(max_new_tokens=900, clear_fields=ENDLESS)
COMPANY = ask(
    "company",
    seed=2,
    do_sample=True,
    top_k=0,
    max_new_tokens=40,
    speculation=LOOKUP,
)


@pytest.fixture
def company(service: RunningService, caller: Caller) -> Iterator[None]:
    """Another request in the same batch: it must say what it says alone."""
    alone = collect(caller.open(COMPANY))
    with Caller(service.address) as other:
        call = other.open(COMPANY)
        yield
        assert collect(call).token_ids == alone.token_ids
    assert alone.complete.speculation.num_draft_tokens > 0


def tokens_read(call: Iterator[pb.GenerateResponse], count: int) -> list[int]:
    """Reads a plainly decoded stream until so many tokens have come."""
    token_ids: list[int] = []
    while len(token_ids) < count:
        token_ids += next(call).chunk.token_ids
    return token_ids


def live(service: RunningService) -> int:
    return len(service.requests)


# --- the caller goes


@pytest.mark.parametrize("tokens", [0, 3, 19], ids=["before the first", "midway", "at the last"])
def test_a_cancelled_call_is_over_within_a_forward(
    service: RunningService, caller: Caller, tokens: int
) -> None:
    before = service.gate.num_forwards
    with service.gate.held(after=tokens):
        call = caller.open(ask(max_new_tokens=20))
        next(call)
        tokens_read(call, tokens)
        service.gate.wait_until_held()
        call.cancel()
        until(lambda: live(service), lambda number: number == 0)
    caller.wait_until_idle()
    assert service.gate.num_forwards - before <= tokens + 2
    assert call.code() is grpc.StatusCode.CANCELLED


@pytest.mark.usefixtures("company")
@pytest.mark.parametrize("tokens", [0, 1, 10])
def test_a_cancelled_call_leaves_its_company_alone(
    service: RunningService, caller: Caller, tokens: int
) -> None:
    call = caller.open(ask(max_new_tokens=900))
    next(call)
    tokens_read(call, tokens)
    call.cancel()


def test_cancelling_after_the_end_changes_nothing(caller: Caller) -> None:
    call = caller.open(ask(max_new_tokens=3))
    answer = collect(call)
    call.cancel()
    assert len(answer.token_ids) == 3
    assert call.code() is grpc.StatusCode.OK


def test_all_sequences_of_a_cancelled_call_go(service: RunningService, caller: Caller) -> None:
    with service.gate.held(after=3):
        call = caller.open(
            ask(do_sample=True, num_return_sequences=8, max_new_tokens=100, speculation=LOOKUP)
        )
        next(call)
        service.gate.wait_until_held()
        assert caller.loads().num_running_sequences == 8
        call.cancel()
    caller.wait_until_idle()


def test_a_call_cancelled_in_the_queue_never_runs(service: RunningService, caller: Caller) -> None:
    with service.gate.held(after=1):
        running = caller.open(ask(do_sample=True, num_return_sequences=8, max_new_tokens=5))
        next(running)
        service.gate.wait_until_held()
        waiting = caller.open(ask(request_id="queued", max_new_tokens=5))
        next(waiting)
        assert live(service) == 2
        waiting.cancel()
        until(lambda: live(service), lambda number: number == 1)
    assert len(collect_rest(running)) == 8
    assert caller.wait_until_idle().num_waiting_requests == 0


def collect_rest(call: Iterator[pb.GenerateResponse]) -> list[pb.SequenceResult]:
    *_, last = call
    return list(last.complete.sequences)


def test_leaving_the_block_of_a_stream_ends_the_generation(
    service: RunningService, caller: Caller, client: Client
) -> None:
    with service.gate.held(after=4):
        with client.stream("abc", LONG) as stream:
            next(stream)
        until(lambda: live(service), lambda number: number == 0)
    caller.wait_until_idle()
    assert stream.partial is not None
    assert len(stream.partial.token_ids) == 1


async def test_breaking_out_of_an_asyncio_stream_ends_the_generation(
    service: RunningService, caller: Caller
) -> None:
    async with AsyncClient(service.address) as client:
        with service.gate.held(after=4):
            async with client.stream("abc", LONG) as stream:
                async for _ in stream:
                    break
            await asyncio.to_thread(until, lambda: live(service), lambda number: number == 0)


async def test_cancelling_the_task_that_reads_ends_the_generation(
    service: RunningService, caller: Caller
) -> None:
    async with AsyncClient(service.address) as client:
        reading = asyncio.Event()

        async def read() -> None:
            async with client.stream("abc", LONG) as stream:
                async for _ in stream:
                    reading.set()

        with service.gate.held(after=4):
            task = asyncio.create_task(read())
            await asyncio.wait_for(reading.wait(), PATIENCE)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await asyncio.to_thread(until, lambda: live(service), lambda number: number == 0)


def test_a_stream_cancelled_by_its_caller_says_so(service: RunningService, client: Client) -> None:
    with client.stream("abc", LONG) as stream:
        next(stream)
        stream.cancel()
        with pytest.raises(RequestCancelledError) as caught:
            stream.collect()
    assert caught.value.partial is not None
    assert caught.value.partial.finish_reason is None


def test_a_client_that_closes_its_connection_ends_what_it_runs(
    service: RunningService, caller: Caller
) -> None:
    with service.gate.held(after=4):
        other = Client(service.address)
        stream = other.stream("abc", LONG)
        stream.__enter__()
        next(stream)
        other.close()
        until(lambda: live(service), lambda number: number == 0)


READ_FOR_EVER = """
import sys
from outrider_client import Client, GenerationConfig
client = Client(sys.argv[1])
stream = client.stream("abc", GenerationConfig(max_new_tokens=900, clear_fields=["eos_token_id"]))
stream.__enter__()
next(stream)
print("reading", flush=True)
sys.stdin.read()
"""


def test_a_client_process_that_is_killed_is_noticed(
    service: RunningService, caller: Caller
) -> None:
    with (
        service.gate.held(after=4),
        subprocess.Popen(
            [sys.executable, "-c", READ_FOR_EVER, service.address],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as process,
    ):
        assert process.stdout is not None
        assert process.stdout.readline() == b"reading\n"
        assert live(service) == 1
        process.kill()
        until(lambda: live(service), lambda number: number == 0)
    caller.wait_until_idle()


# --- the time is over


def test_a_deadline_in_the_middle_ends_the_call_and_keeps_what_had_come(
    service: RunningService, caller: Caller, client: Client
) -> None:
    with service.gate.held(after=5):
        with pytest.raises(DeadlineExceededError) as caught:
            client.generate("abc", LONG, timeout=0.7)
        until(lambda: live(service), lambda number: number == 0)
    assert caught.value.partial is not None
    assert len(caught.value.partial.token_ids) == 5
    caller.wait_until_idle()


def test_a_deadline_that_passes_in_the_queue_ends_the_call_before_it_runs(
    service: RunningService, caller: Caller
) -> None:
    seen: list[int] = []
    service.gate.before = lambda batch: seen.extend(token for item in batch for token in item[1])
    try:
        with service.gate.held(after=1):
            running = caller.open(ask(do_sample=True, num_return_sequences=8, max_new_tokens=5))
            next(running)
            service.gate.wait_until_held()
            waiting = caller.open(ask([250], max_new_tokens=5), timeout=0.3)
            with pytest.raises(grpc.RpcError):
                list(waiting)
            assert waiting.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            until(lambda: live(service), lambda number: number == 1)
        collect_rest(running)
        caller.wait_until_idle()
    finally:
        service.gate.before = lambda batch: None
    assert 250 not in seen


def test_a_deadline_that_has_passed_already_costs_no_forward(
    service: RunningService, client: Client
) -> None:
    before = service.gate.num_forwards
    with pytest.raises(DeadlineExceededError):
        client.generate("abc", LONG, timeout=1e-6)
    assert service.gate.num_forwards == before


def test_max_time_ends_a_text_with_what_there_is(client: Client) -> None:
    config = GenerationConfig(max_new_tokens=900, max_time=0.1, clear_fields=ENDLESS)
    completion = client.generate("abc", config)
    assert completion.finish_reason is FinishReason.TIME
    assert 0 < len(completion.token_ids) < 900
    assert completion.usage.total_seconds >= 0.1


def test_max_time_counts_in_the_queue_as_well(caller: Caller) -> None:
    running = caller.open(ask(do_sample=True, num_return_sequences=8, max_new_tokens=900))
    next(running)
    answer = collect(caller.open(ask(max_new_tokens=5, max_time=0.02)))
    running.cancel()
    assert answer.finish_reasons == ["TIME"]
    assert answer.token_ids == []
    assert answer.complete.usage.queue_seconds == 0.0 or answer.complete.speculation.num_rounds == 0


def test_a_drafter_is_waited_for_no_longer_than_a_request_has_time(
    service: RunningService, caller: Caller
) -> None:
    class Silent(ScriptedSession):
        def waiting_until(self, window: int, now: float) -> float | None:
            return now + PATIENCE

    class SilentDrafter:
        def open(self, request: Any, *, sample_index: int, token_ids: Any, window: int) -> Silent:
            return Silent(lambda *_: [], request, sample_index, token_ids)

    drafters: Any = service.serving.engine._rounds._drafters
    before = drafters[DraftMethod.NONE]
    drafters[DraftMethod.NONE] = SilentDrafter()
    try:
        answer = collect(caller.open(ask(max_new_tokens=5, max_time=0.2), timeout=PATIENCE / 2))
    finally:
        drafters[DraftMethod.NONE] = before
    assert answer.finish_reasons == ["TIME"]


# --- others decide


@pytest.mark.usefixtures("company")
def test_abort_ends_running_requests_by_id_and_no_other(
    service: RunningService, caller: Caller
) -> None:
    calls = [caller.open(ask(request_id=f"victim {i}", max_new_tokens=900)) for i in range(2)]
    for call in calls:
        next(call)
        tokens_read(call, 2)
    request = pb.AbortRequest(request_ids=["victim 1", "nobody", "victim 0"])
    aborted = caller.stub.Abort(request, timeout=PATIENCE).aborted_request_ids
    assert list(aborted) == ["victim 1", "victim 0"]
    for call in calls:
        (result,) = collect_rest(call)
        assert result.finish_reason == pb.FINISH_REASON_CANCELLED
        assert 2 <= result.num_completion_tokens < 900
        assert call.code() is grpc.StatusCode.OK
    again = caller.stub.Abort(request, timeout=PATIENCE)
    assert not again.aborted_request_ids


def test_an_aborted_request_keeps_what_it_had_said_and_its_numbers(
    service: RunningService, caller: Caller
) -> None:
    with service.gate.held(after=6):
        call = caller.open(
            ask(
                "abcabc", request_id="victim", do_sample=True, num_return_sequences=2,
                max_new_tokens=900, speculation=LOOKUP, top_k=5, seed=1,
            )
        )  # fmt: skip
        service.gate.wait_until_held()
        caller.stub.Abort(pb.AbortRequest(request_ids=["victim"]), timeout=PATIENCE)
    answer = collect(call)
    assert answer.finish_reasons == ["CANCELLED"] * 2
    assert all(part.token_ids for part in answer.parts)


def test_abort_ends_a_request_that_waits(service: RunningService, caller: Caller) -> None:
    with service.gate.held(after=1):
        running = caller.open(ask(do_sample=True, num_return_sequences=8, max_new_tokens=5))
        next(running)
        service.gate.wait_until_held()
        waiting = caller.open(ask(request_id="queued", max_new_tokens=5))
        next(waiting)
        caller.stub.Abort(pb.AbortRequest(request_ids=["queued"]), timeout=PATIENCE)
    answer = collect_rest(waiting)
    assert [result.finish_reason for result in answer] == [pb.FINISH_REASON_CANCELLED]
    assert answer[0].num_completion_tokens == 0
    assert len(collect_rest(running)) == 8


def test_two_live_requests_never_share_an_id(service: RunningService, caller: Caller) -> None:
    with service.gate.held():
        first = caller.open(ask(request_id="same", max_new_tokens=2))
        next(first)
        second = caller.open(ask(request_id="same", max_new_tokens=2))
        with pytest.raises(grpc.RpcError):
            next(second)
        assert second.code() is grpc.StatusCode.ALREADY_EXISTS
        assert "same" in second.details()
    (result,) = collect_rest(first)
    assert result.num_completion_tokens == 2


# --- slow readers

WORDY = ask(max_new_tokens=150, sequence_bias=[[[LONG_WORD], 1e6]])
"""Its text, 300 KB, is more than gRPC's buffers hold for a reader that does not read."""


@pytest.fixture
def sleeper(service: RunningService) -> Iterator[Caller]:
    """Takes a byte at a time, and only when it reads."""
    with Caller(
        service.address, grpc__http2__lookahead_bytes=1, grpc__http2__bdp_probe=0
    ) as connected:
        yield connected


def test_a_reader_that_does_not_read_holds_up_nobody(
    service: RunningService, caller: Caller, sleeper: Caller
) -> None:
    call = sleeper.open(WORDY)
    next(call)
    # Nobody reads on, and yet the text is written to its end, beside another one.
    beside = collect(caller.open(ask(max_new_tokens=20)))
    assert len(beside.token_ids) == 20
    loads = until(caller.loads, lambda loads: loads.num_running_sequences == 0)
    assert loads.kv_cache_usage == 0
    assert live(service) == 0, "it holds no place either"
    messages = list(call)
    assert "".join(message.chunk.text for message in messages) == LONG_WORD_TEXT * 150
    assert messages[-1].complete.usage.completion_tokens == 150


def test_pacing_of_a_request_without_a_drafter_changes_nothing(caller: Caller) -> None:
    speculation = speculation_pb2.SpeculationConfig(
        pacing=speculation_pb2.DRAFT_PACING_SYNCHRONOUS, draft_timeout_ms=60_000
    )
    answer = collect(caller.open(ask(max_new_tokens=5, speculation=speculation)))
    assert len(answer.token_ids) == 5
