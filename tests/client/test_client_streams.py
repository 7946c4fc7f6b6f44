"""What a stream hands out, and that leaving it always ends the call at the server."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from client.fake_server import (
    PATIENCE,
    FakeServer,
    Responses,
    chunk,
    complete,
    endless,
    started,
    two_rounds,
)
from client.twins import Twin, enter
from outrider.v1 import generation_pb2
from outrider_client import (
    AsyncClient,
    Client,
    FinishReason,
    GenerationConfig,
    OutriderError,
    RequestCancelledError,
    ServerError,
    StreamInterruptedError,
)

Ended = Callable[[], Awaitable[str]]


async def test_a_stream_hands_out_the_chunks_as_they_are(twin: Twin) -> None:
    async with twin.stream("def main(") as stream:
        first, second, end = [await stream.next() for _ in range(3)]
    assert (first.text, first.token_ids, first.drafted) == ("<10><11>", [10, 11], [True, False])
    assert (second.text, second.token_ids, second.sequence_index) == ("<12><13>", [12, 13], 0)
    assert end is None
    assert await stream.next() is None, "an ended stream stays ended"


async def test_the_completion_is_the_sum_of_the_chunks(twin: Twin) -> None:
    async with twin.stream("def main(", seed=2**64 - 1) as stream:
        while await stream.next() is not None:
            pass
    final = stream.inner.final
    assert final.text == "<10><11><12><13>"
    assert final.token_ids == [10, 11, 12, 13]
    assert final.drafted == [True, False, True, False]
    assert final.finish_reason is FinishReason.LENGTH
    assert final.usage.completion_tokens == 4
    assert final.usage.total_seconds == 2.0
    assert final.seed == 2**64 - 1
    assert final.speculation.mean_acceptance_length == 2.0
    assert final.speculation.num_accepted_tokens_per_pos == (2, 0)
    assert final.effective_config == GenerationConfig(top_k=50)


async def test_generate_gives_the_same_completion_as_a_stream(twin: Twin) -> None:
    async with twin.stream("def main(", seed=3, request_id="mine") as stream:
        streamed = await stream.collect()
    assert await twin.call("generate", "def main(", seed=3, request_id="mine") == streamed


async def test_what_started_is_known_before_the_first_token(twin: Twin, server: FakeServer) -> None:
    server.script = endless
    async with twin.stream([5, 6], GenerationConfig(max_new_tokens=9), request_id="mine") as stream:
        assert stream.inner.started.seed == 7
        assert stream.inner.started.request_id == "mine"
        assert stream.inner.started.effective_config.max_new_tokens == 9
        assert stream.inner.started.num_prompt_tokens == 3
        assert stream.inner.partial.token_ids == []


async def test_a_chunk_is_handed_out_before_the_next_one_exists(
    twin: Twin, server: FakeServer
) -> None:
    received = threading.Event()

    def one_at_a_time(request: Any, context: Any) -> Responses:
        yield started(request)
        yield chunk([10])
        if received.wait(PATIENCE):
            yield chunk([11])
            yield complete((2,))

    server.script = one_at_a_time
    async with twin.stream("x") as stream:
        first = await stream.next()
        assert first is not None
        assert first.token_ids == [10]
        received.set()
        assert (await stream.collect()).token_ids == [10, 11]


async def test_the_text_can_be_iterated_alone(twin: Twin) -> None:
    async with twin.stream("x") as stream:
        pieces = stream.inner.text
        if hasattr(pieces, "__aiter__"):
            found = [piece async for piece in pieces]
        else:
            found = await asyncio.to_thread(list, pieces)
    assert found == ["<10><11>", "<12><13>"]


async def test_several_sequences_are_kept_apart(twin: Twin, server: FakeServer) -> None:
    def interleaved(request: Any, context: Any) -> Responses:
        yield started(request)
        yield chunk([10], sequence_index=1)
        yield chunk([20, 21], sequence_index=0)
        yield chunk([11], sequence_index=1)
        yield complete((2, 2, 0), finish_reason=generation_pb2.FINISH_REASON_STOP)

    server.script = interleaved
    config = GenerationConfig(num_return_sequences=3, do_sample=True)
    completion = await twin.call("generate", "x", config)
    assert [sequence.token_ids for sequence in completion.sequences] == [[20, 21], [10, 11], []]
    assert {sequence.finish_reason for sequence in completion.sequences} == {FinishReason.STOP}
    assert completion.text == completion.sequences[0].text == "<20><21>"


async def test_why_a_sequence_stopped_is_told(twin: Twin, server: FakeServer) -> None:
    def stopped(request: Any, context: Any) -> Responses:
        yield started(request)
        last = complete((0,), finish_reason=generation_pb2.FINISH_REASON_STOP)
        last.complete.sequences[0].matched_stop_string = "END"
        yield last

    server.script = stopped
    completion = await twin.call("generate", "x")
    assert completion.matched_stop_string == "END"
    assert completion.matched_stop_token_id is None


async def test_text_that_comes_after_its_tokens_is_not_lost(twin: Twin, server: FakeServer) -> None:
    def late(request: Any, context: Any) -> Responses:
        yield started(request)
        yield chunk([10], text="")
        yield chunk([], text="\N{SNOWMAN}")
        yield complete((1,))

    server.script = late
    async with twin.stream("x") as stream:
        texts = [(await stream.next()).text for _ in range(2)]
    assert texts == ["", "\N{SNOWMAN}"]


async def test_messages_of_a_newer_server_are_skipped(twin: Twin, server: FakeServer) -> None:
    def newer(request: Any, context: Any) -> Responses:
        yield started(request)
        yield generation_pb2.GenerateResponse()  # a kind that this client does not know
        last = complete((0,))
        last.complete.sequences[0].finish_reason = 99  # type: ignore[assignment]  # not ours yet
        yield last

    server.script = newer
    completion = await twin.call("generate", "x")
    assert completion.finish_reason is None


async def test_leaving_the_block_ends_the_call_at_the_server(
    twin: Twin, server: FakeServer, ended: Ended
) -> None:
    server.script = endless
    async with twin.stream("x", request_id="left") as stream:
        await stream.next()
    assert await ended() == "left"
    with pytest.raises(RuntimeError, match="not open"):
        await stream.next()
    with pytest.raises(RuntimeError, match="has not ended"):
        _ = stream.inner.final
    assert stream.inner.partial.token_ids == [10, 11]


async def test_an_error_in_the_block_ends_the_call_at_the_server(
    twin: Twin, server: FakeServer, ended: Ended
) -> None:
    server.script = endless

    async def use() -> None:
        async with twin.stream("x", request_id="left") as stream:
            await stream.next()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await use()
    assert await ended() == "left"


async def test_breaking_out_of_a_loop_ends_the_call_at_the_server(
    server: FakeServer, ended: Ended
) -> None:
    """With grpc.aio alone the call would go on, unread, even after garbage collection."""
    server.script = endless
    async with (
        AsyncClient(server.address) as client,
        client.stream("x", request_id="asyncio") as stream,
    ):
        async for _ in stream:
            break
    assert await ended() == "asyncio"

    def in_a_thread() -> None:
        with Client(server.address) as sync, sync.stream("x", request_id="thread") as stream:
            for _ in stream:
                break

    await asyncio.to_thread(in_a_thread)
    assert await ended() == "thread"


async def test_a_completed_stream_is_not_cancelled(twin: Twin, server: FakeServer) -> None:
    for _ in range(20):
        await twin.call("generate", "x")
    assert server.ended.empty()
    assert len(server.received) == 20


async def test_cancelling_from_elsewhere_wakes_who_iterates(
    twin: Twin, server: FakeServer, ended: Ended
) -> None:
    server.script = endless
    async with twin.stream("x", request_id="gone") as stream:
        await stream.next()
        waiting = asyncio.create_task(stream.next())
        await asyncio.sleep(0)
        stream.inner.cancel()
        with pytest.raises(RequestCancelledError) as caught:
            await asyncio.wait_for(waiting, PATIENCE)
    assert await ended() == "gone"
    assert caught.value.partial is not None
    assert caught.value.partial.token_ids == [10, 11]


async def test_cancelling_wakes_who_waits_for_the_server_to_begin(
    twin: Twin, server: FakeServer, ended: Ended, waits: list[float]
) -> None:
    accepted = threading.Event()

    def silent(request: Any, context: Any) -> Responses:
        over = threading.Event()
        context.add_callback(over.set)
        accepted.set()
        over.wait(PATIENCE)
        yield from ()

    server.script = silent
    inner = twin.client.stream("x", request_id="early")

    entering = asyncio.create_task(enter(inner))
    assert await asyncio.to_thread(accepted.wait, PATIENCE)
    inner.cancel()
    with pytest.raises(RequestCancelledError):
        await asyncio.wait_for(entering, PATIENCE)
    assert await ended() == "early"
    assert (len(server.received), waits) == (1, []), "a cancelled request is not tried again"


@pytest.mark.parametrize("when", ["entering", "iterating"])
async def test_cancelling_the_task_ends_the_call_and_stays_a_task_cancellation(
    server: FakeServer, ended: Ended, when: str
) -> None:
    accepted = threading.Event()
    entered = asyncio.Event()

    def stalled(request: Any, context: Any) -> Responses:
        over = threading.Event()
        context.add_callback(over.set)
        accepted.set()
        if when == "iterating":
            yield started(request)
        over.wait(PATIENCE)

    server.script = stalled

    async def use() -> None:
        async with (
            AsyncClient(server.address) as client,
            client.stream("x", request_id="task") as stream,
        ):
            entered.set()
            await stream.collect()

    task = asyncio.create_task(use())
    assert await asyncio.to_thread(accepted.wait, PATIENCE)
    if when == "iterating":
        await asyncio.wait_for(entered.wait(), PATIENCE)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert entered.is_set() == (when == "iterating")
    assert await ended() == "task"


async def test_closing_the_client_breaks_off_its_streams(twin: Twin, server: FakeServer) -> None:
    server.script = endless
    async with twin.stream("x") as stream:
        await stream.next()
        waiting = asyncio.create_task(stream.next())
        await asyncio.sleep(0)
        await twin.call("close")
        with pytest.raises(StreamInterruptedError) as caught:
            await asyncio.wait_for(waiting, PATIENCE)
    assert caught.value.partial is not None
    assert caught.value.partial.token_ids == [10, 11]


async def test_a_stream_is_used_in_one_block_and_only_there(twin: Twin) -> None:
    unopened = twin.client.stream("x")
    with pytest.raises(RuntimeError, match="not open"):
        _ = unopened.started
    with pytest.raises(RuntimeError, match="not open"):
        await anext(unopened) if hasattr(unopened, "__anext__") else next(unopened)
    assert unopened.partial is None
    async with twin.stream("x") as stream:
        with pytest.raises(RuntimeError, match="only once"):
            await enter(stream.inner)


def _no_start(request: Any, context: Any) -> Responses:
    yield chunk([1])


def _no_message(request: Any, context: Any) -> Responses:
    yield from ()


@pytest.mark.parametrize("script", [_no_start, _no_message])
async def test_a_stream_that_does_not_start_is_the_servers_error(
    twin: Twin, server: FakeServer, script: Any
) -> None:
    server.script = script
    with pytest.raises(ServerError, match="broke the contract"):
        await twin.call("generate", "x")
    assert len(server.received) == 1


def _no_end(request: Any, context: Any) -> Responses:
    yield started(request)
    yield chunk([1])


def _uninvited_sequence(request: Any, context: Any) -> Responses:
    yield started(request)
    yield chunk([1])
    yield chunk([2], sequence_index=2**32 - 1)
    yield complete()


@pytest.mark.parametrize("script", [_no_end, _uninvited_sequence])
async def test_a_stream_that_breaks_the_contract_keeps_what_had_arrived(
    twin: Twin, server: FakeServer, script: Any
) -> None:
    server.script = script
    with pytest.raises(StreamInterruptedError, match="broke the contract") as caught:
        await twin.call("generate", "x")
    assert caught.value.partial is not None
    assert caught.value.partial.token_ids == [1]
    assert isinstance(caught.value.__cause__, ServerError)


async def test_a_failure_after_the_last_message_loses_nothing(
    twin: Twin, server: FakeServer
) -> None:
    def failing_late(request: Any, context: Any) -> Responses:
        yield from two_rounds(request, context)
        raise OutriderError("after the fact")

    server.script = failing_late
    assert (await twin.call("generate", "x")).token_ids == [10, 11, 12, 13]
