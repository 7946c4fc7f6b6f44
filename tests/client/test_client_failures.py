"""Every status becomes the exception that tells the caller what to do."""

from __future__ import annotations

import asyncio
import pickle
import threading
import time
from collections.abc import Callable
from typing import Any

import grpc
import outrider_client
import pytest
from client.fake_server import (
    PATIENCE,
    Failure,
    FakeServer,
    Responses,
    chunk,
    endless,
    started,
)
from client.twins import Twin
from outrider_client import (
    AlreadyExistsError,
    AsyncStream,
    AuthenticationError,
    DeadlineExceededError,
    InvalidRequestError,
    NotFoundError,
    OutriderError,
    OverloadedError,
    PermissionDeniedError,
    RequestCancelledError,
    ServerError,
    StreamInterruptedError,
    UnavailableError,
)

CLASSES = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequestError,
    grpc.StatusCode.FAILED_PRECONDITION: InvalidRequestError,
    grpc.StatusCode.OUT_OF_RANGE: InvalidRequestError,
    grpc.StatusCode.NOT_FOUND: NotFoundError,
    grpc.StatusCode.ALREADY_EXISTS: AlreadyExistsError,
    grpc.StatusCode.UNAUTHENTICATED: AuthenticationError,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDeniedError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: OverloadedError,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceededError,
    grpc.StatusCode.UNAVAILABLE: UnavailableError,
    grpc.StatusCode.CANCELLED: RequestCancelledError,
    grpc.StatusCode.INTERNAL: ServerError,
    grpc.StatusCode.UNKNOWN: ServerError,
    grpc.StatusCode.UNIMPLEMENTED: ServerError,
    grpc.StatusCode.DATA_LOSS: ServerError,
    grpc.StatusCode.ABORTED: ServerError,
}


@pytest.mark.parametrize("code", list(CLASSES))
@pytest.mark.parametrize("method", ["generate", "model_info"])
async def test_each_status_code_has_its_exception(
    twin: Twin, server: FakeServer, code: grpc.StatusCode, method: str
) -> None:
    server.failures.extend([Failure(code, "because")] * 3)
    with pytest.raises(OutriderError) as caught:
        await twin.call(method, *(["x"] if method == "generate" else []))
    assert type(caught.value) is CLASSES[code]
    assert caught.value.code is code
    assert caught.value.message == "because"
    assert caught.value.partial is None
    assert isinstance(caught.value.__cause__, grpc.RpcError)


async def test_the_details_of_a_status_reach_the_caller(twin: Twin, server: FakeServer) -> None:
    server.failures.append(
        Failure(
            grpc.StatusCode.INVALID_ARGUMENT,
            "top_p: must be in [0, 1]",
            reason="INVALID_FIELD",
            field="top_p",
            request_id="from-the-server",
        )
    )
    with pytest.raises(InvalidRequestError) as caught:
        await twin.call("generate", "x", request_id="mine")
    error = caught.value
    assert (error.field, error.reason) == ("top_p", "INVALID_FIELD")
    assert error.request_id == "from-the-server"
    assert str(error) == "top_p: must be in [0, 1] (request from-the-server)"
    assert isinstance(error, ValueError)


async def test_an_error_names_the_request_even_when_the_server_does_not(
    twin: Twin, server: FakeServer
) -> None:
    server.failures.append(Failure(grpc.StatusCode.INTERNAL))
    with pytest.raises(ServerError) as caught:
        await twin.call("generate", "x", request_id="mine")
    assert caught.value.request_id == "mine"
    server.failures.append(Failure(grpc.StatusCode.INTERNAL))
    with pytest.raises(ServerError) as caught:
        await twin.call("loads")
    assert caught.value.request_id == server.received[-1].metadata["x-request-id"]


async def test_a_full_server_says_when_to_come_back(twin: Twin, server: FakeServer) -> None:
    server.failures.append(Failure(grpc.StatusCode.RESOURCE_EXHAUSTED, retry_after=90.5))
    with pytest.raises(OverloadedError) as caught:
        await twin.call("generate", "x")
    assert caught.value.retry_after == 90.5
    assert caught.value.retryable


@pytest.mark.parametrize(
    ("error", "retryable"),
    [
        (UnavailableError("x"), True),
        (OverloadedError("x", retry_after=0.0), True),
        (OverloadedError("x"), False),
        (InvalidRequestError("x"), False),
        (ServerError("x"), False),
        (DeadlineExceededError("x"), False),
        (StreamInterruptedError("x", code=grpc.StatusCode.UNAVAILABLE), True),
        (StreamInterruptedError("x", code=grpc.StatusCode.INTERNAL), False),
    ],
)
def test_an_error_says_whether_trying_again_may_help(error: OutriderError, retryable: bool) -> None:
    assert error.retryable is retryable


@pytest.mark.parametrize(
    "code",
    [
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    ],
)
async def test_a_stream_that_breaks_off_keeps_what_had_arrived(
    twin: Twin, server: FakeServer, code: grpc.StatusCode, waits: list[float]
) -> None:
    def breaking(request: Any, context: Any) -> Responses:
        yield started(request, seed=99)
        yield chunk([10, 11])
        Failure(code, "half way", reason="WHY", retry_after=0.1).raise_in(context)

    server.script = breaking
    with pytest.raises(StreamInterruptedError, match="half way") as caught:
        await twin.call("generate", "x", request_id="mine")
    error = caught.value
    assert (error.code, error.reason, error.request_id) == (code, "WHY", "mine")
    assert type(error.__cause__) is CLASSES[code]
    partial = error.partial
    assert partial is not None
    assert (partial.text, partial.token_ids, partial.seed) == ("<10><11>", [10, 11], 99)
    assert partial.finish_reason is None
    assert (partial.usage.prompt_tokens, partial.usage.completion_tokens) == (3, 2)
    assert len(server.received) == 1, "tokens were given out: no second try"
    assert waits == []


async def test_a_server_that_goes_away_breaks_off_the_stream(
    twin: Twin, server: FakeServer
) -> None:
    server.script = endless
    async with twin.stream("x") as stream:
        await stream.next()
        await asyncio.to_thread(server.stop)
        with pytest.raises(StreamInterruptedError) as caught:
            await stream.next()
    assert caught.value.partial is not None
    assert caught.value.partial.token_ids == [10, 11]
    assert caught.value.retryable


async def test_the_timeout_ends_a_silent_stream_with_what_had_arrived(
    twin: Twin, server: FakeServer
) -> None:
    server.script = endless
    with pytest.raises(DeadlineExceededError) as caught:
        await twin.call("generate", "x", timeout=0.5)
    assert caught.value.partial is not None
    assert caught.value.partial.token_ids == [10, 11]
    assert await asyncio.to_thread(server.ended.get, timeout=PATIENCE)


@pytest.mark.parametrize("method", ["generate", "tokenize"])
async def test_the_timeout_ends_a_call_that_never_starts(
    twin: Twin, server: FakeServer, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = threading.Event()
    original = server._receive

    def never(*args: Any) -> None:
        original(*args)
        release.wait(PATIENCE)

    monkeypatch.setattr(server, "_receive", never)
    try:
        with pytest.raises(DeadlineExceededError) as caught:
            await twin.call(method, "x", timeout=0.2)
    finally:
        release.set()
    assert caught.value.partial is None
    assert len(server.received) == 1, "the timeout is for all tries together"


async def test_the_servers_deadline_is_the_timeout(
    connect: Callable[..., Any], server: FakeServer
) -> None:
    async with connect(server.address, timeout=50) as twin:
        await twin.call("generate", "x")
        await twin.call("generate", "x", timeout=500)
        await twin.call("loads", timeout=5)
        await twin.call("model_info")
    left = [call.seconds_left for call in server.received]
    for seconds, timeout in zip(left, [50, 500, 5, 50], strict=True):
        assert seconds is not None
        assert timeout - 5 < seconds < timeout * 1.05  # gRPC rounds up what it sends


async def test_without_a_timeout_there_is_no_deadline(twin: Twin, server: FakeServer) -> None:
    await twin.call("generate", "x")
    left = server.received[0].seconds_left
    assert left is None or left > 1e8


async def test_the_clock_of_a_stream_starts_when_it_is_entered(
    twin: Twin, server: FakeServer
) -> None:
    now = time.monotonic()
    waiting = twin.client.stream("x", timeout=20)
    waiting._attempts._clock = lambda: now + 1e6  # whatever passes before entering
    if isinstance(waiting, AsyncStream):
        async with waiting as stream:
            assert (await stream.collect()).token_ids
    else:
        with waiting as stream:
            assert (await asyncio.to_thread(stream.collect)).token_ids


def test_errors_can_be_pickled() -> None:
    for name in outrider_client.__all__:
        cls = getattr(outrider_client, name)
        if not (isinstance(cls, type) and issubclass(cls, OutriderError)):
            continue
        error = cls("why", code=grpc.StatusCode.ABORTED, request_id="id", reason="R")
        back = pickle.loads(pickle.dumps(error))
        assert type(back) is cls
        assert (str(back), vars(back)) == (str(error), vars(error))


def test_details_that_are_not_ours_do_not_get_in_the_way(
    server: FakeServer, client: outrider_client.Client
) -> None:
    class Foreign(Failure):
        def raise_in(self, context: Any) -> None:
            context.set_trailing_metadata((("grpc-status-details-bin", b"\xff garbage"),))
            context.abort(self.code, self.message)

    server.failures.append(Foreign(grpc.StatusCode.PERMISSION_DENIED, "no"))
    with pytest.raises(PermissionDeniedError, match="no"):
        client.loads()


def test_no_status_code_is_forgotten() -> None:
    assert set(CLASSES) == set(grpc.StatusCode) - {grpc.StatusCode.OK}
