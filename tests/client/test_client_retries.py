"""What is tried again, how often, after how long, and never once tokens were given out."""

from __future__ import annotations

import inspect
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from client.fake_server import Failure, FakeServer
from client.twins import Twin, enter
from hypothesis import given, settings
from hypothesis import strategies as st
from outrider_client import (
    AsyncClient,
    Client,
    DeadlineExceededError,
    InvalidRequestError,
    OutriderError,
    OverloadedError,
    RequestCancelledError,
    ServerError,
    UnavailableError,
)
from outrider_client._retry import INITIAL_DELAY, MAX_DELAY, MAX_RETRY_AFTER, Attempts

UNAVAILABLE = Failure(grpc.StatusCode.UNAVAILABLE)


@pytest.mark.parametrize("method", ["generate", "tokenize"])
@pytest.mark.parametrize(
    "failure",
    [
        UNAVAILABLE,
        Failure(grpc.StatusCode.RESOURCE_EXHAUSTED, retry_after=0.0),
        # A server that stops while it accepts a call answers so, once in some hundred.
        Failure(grpc.StatusCode.CANCELLED),
    ],
)
async def test_a_passing_failure_is_not_noticed(
    twin: Twin, server: FakeServer, failure: Failure, method: str, waits: list[float]
) -> None:
    server.failures.extend([failure, failure])
    assert await twin.call(method, "x")
    assert len(server.received) == 3
    assert len(waits) == 2


@pytest.mark.parametrize(
    "failure",
    [
        Failure(grpc.StatusCode.INVALID_ARGUMENT, retry_after=0.0),
        Failure(grpc.StatusCode.ALREADY_EXISTS),
        Failure(grpc.StatusCode.INTERNAL),
        Failure(grpc.StatusCode.UNKNOWN),
        Failure(grpc.StatusCode.DEADLINE_EXCEEDED),
        # Without RetryInfo it is a limit, such as the size of a message: no use in trying again.
        Failure(grpc.StatusCode.RESOURCE_EXHAUSTED),
        Failure(grpc.StatusCode.RESOURCE_EXHAUSTED, retry_after=MAX_RETRY_AFTER + 1),
    ],
)
async def test_a_lasting_failure_is_told_at_once(
    twin: Twin, server: FakeServer, failure: Failure, waits: list[float]
) -> None:
    server.failures.append(failure)
    with pytest.raises(OutriderError):
        await twin.call("generate", "x")
    assert len(server.received) == 1
    assert waits == []


@pytest.mark.parametrize("max_retries", [0, 1, 5])
async def test_the_number_of_tries_is_the_callers(
    connect: Callable[..., Any], server: FakeServer, max_retries: int
) -> None:
    server.failures.extend([UNAVAILABLE] * 10)
    async with connect(server.address, max_retries=max_retries) as twin:
        with pytest.raises(UnavailableError):
            await twin.call("generate", "x")
    assert len(server.received) == max_retries + 1


async def test_the_server_decides_when_it_is_asked_again(
    twin: Twin, server: FakeServer, waits: list[float]
) -> None:
    server.failures.append(Failure(grpc.StatusCode.RESOURCE_EXHAUSTED, retry_after=12.5))
    await twin.call("generate", "x")
    assert 12.5 <= waits[0] <= 12.5 * 1.1


async def test_tries_never_wait_past_the_timeout(
    twin: Twin, server: FakeServer, waits: list[float]
) -> None:
    server.failures.append(Failure(grpc.StatusCode.RESOURCE_EXHAUSTED, retry_after=30.0))
    with pytest.raises(OverloadedError):
        await twin.call("generate", "x", timeout=20)
    assert waits == []


async def test_every_try_has_what_is_left_of_the_timeout(
    connect: Callable[..., Any], server: FakeServer
) -> None:
    seconds = iter([0.0, 0.0, 30.0, 30.0, 60.0, 60.0, 90.0])
    server.failures.extend([UNAVAILABLE] * 2)
    async with connect(server.address, clock=lambda: next(seconds)) as twin:
        await twin.call("generate", "x", timeout=100)
    left = [call.seconds_left or 0.0 for call in server.received]
    assert [round(each, -1) for each in left] == [100, 70, 40]


async def test_each_try_has_an_id_of_its_own_unless_the_caller_gave_one(
    twin: Twin, server: FakeServer
) -> None:
    """The server may not have noticed that the first try is dead."""
    server.failures.append(UNAVAILABLE)
    await twin.call("generate", "x")
    first, second = [call.request.request_id for call in server.received]
    assert first
    assert second
    assert first != second
    server.failures.append(UNAVAILABLE)
    await twin.call("generate", "x", request_id="mine")
    assert [call.request.request_id for call in server.received[2:]] == ["mine", "mine"]


async def test_an_unreachable_server_is_reported_after_all_tries(
    connect: Callable[..., Any], waits: list[float]
) -> None:
    with socket.socket() as unused:  # bound, not listening: connections are refused
        unused.bind(("127.0.0.1", 0))
        async with connect(f"127.0.0.1:{unused.getsockname()[1]}") as twin:
            with pytest.raises(UnavailableError) as caught:
                await twin.call("generate", "x")
    assert caught.value.retryable
    assert len(waits) == 2


def attempts(max_retries: int, timeout: float | None = None) -> Attempts:
    tries = Attempts(max_retries, timeout=timeout, clock=lambda: 0.0)
    tries.remaining()
    return tries


def test_the_backoff_doubles_up_to_its_limit_with_jitter() -> None:
    tries = attempts(40)
    for count in range(40):
        full = min(MAX_DELAY, 0.5 * 2**count)
        delay = tries.delay(UnavailableError("x"))
        assert delay is not None
        assert full / 2 <= delay <= full
    assert tries.delay(UnavailableError("x")) is None


def test_the_page_tells_how_long_the_tries_wait() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "client.md").read_text()
    table = page.partition("| `max_retries` |")[2].partition("\n\n")[0]
    rows = re.findall(r"^\| (\d+)( \(the default\))? \| ([\d.]+)(?: to ([\d.]+))?", table, re.M)
    assert len(rows) == 5
    for number, is_default, least, most in rows:
        full = sum(min(MAX_DELAY, INITIAL_DELAY * 2**count) for count in range(int(number)))
        assert (float(least), float(most or least)) == (full / 2, full)
        if is_default:
            defaults = [inspect.signature(each).parameters for each in (Client, AsyncClient)]
            assert {each["max_retries"].default for each in defaults} == {int(number)}
    assert sum(bool(is_default) for _, is_default, _, _ in rows) == 1


@pytest.mark.parametrize("method", ["generate", "tokenize"])
async def test_enough_tries_get_through_a_restart_and_the_default_does_not(
    connect: Callable[..., Any], server: FakeServer, method: str, waits: list[float]
) -> None:
    draining = Failure(grpc.StatusCode.UNAVAILABLE, reason="DRAINING")
    server.failures.extend([draining] * 3)
    async with connect(server.address) as twin:
        with pytest.raises(UnavailableError) as caught:
            await twin.call(method, "x")
        assert caught.value.reason == "DRAINING"
    assert sum(waits) <= 1.5
    server.failures.extend([*[draining] * 3, *[UNAVAILABLE] * 5])
    async with connect(server.address, max_retries=10) as twin:
        assert await twin.call(method, "x")


@settings(deadline=None)
@given(
    max_retries=st.integers(0, 5),
    timeout=st.none() | st.floats(0.01, 100),
    retry_after=st.none() | st.floats(0, 1000),
)
def test_whatever_the_failures_tries_are_bounded_in_number_and_time(
    max_retries: int, timeout: float | None, retry_after: float | None
) -> None:
    tries = attempts(max_retries, timeout)
    delays = []
    for _ in range(max_retries + 1):
        delay = tries.delay(OverloadedError("x", retry_after=retry_after))
        if delay is None:
            break
        assert retry_after is not None
        assert retry_after <= delay
        assert timeout is None or delay < timeout
        delays.append(delay)
    assert len(delays) <= max_retries


def test_no_time_left_is_a_deadline() -> None:
    seconds = iter([0.0, 5.0, 10.0, 10.1])
    tries = Attempts(9, timeout=10.0, clock=lambda: next(seconds))
    assert tries.remaining() == 5.0
    with pytest.raises(DeadlineExceededError):
        tries.remaining()
    with pytest.raises(DeadlineExceededError):
        tries.remaining()


@pytest.mark.parametrize("error", [ServerError("x"), InvalidRequestError("x")])
def test_a_lasting_error_ends_the_tries(error: OutriderError) -> None:
    assert attempts(9).delay(error) is None


def test_a_cancellation_nobody_asked_for_is_worth_another_try() -> None:
    error = RequestCancelledError("x", code=grpc.StatusCode.CANCELLED)
    assert attempts(1).delay(error) is not None


async def test_a_stream_cancelled_between_tries_is_not_tried_again(
    connect: Callable[..., Any], server: FakeServer
) -> None:
    streams: list[Any] = []

    class CancelAndWait:
        """Somebody cancels while the client waits; answers as either kind of sleep."""

        def __call__(self, _: float) -> CancelAndWait:
            streams[0].cancel()
            return self

        def __await__(self) -> Any:
            yield from ()

    server.failures.append(UNAVAILABLE)
    async with connect(server.address, sleep=CancelAndWait()) as twin:
        stream = twin.client.stream("x")
        streams.append(stream)
        with pytest.raises(RequestCancelledError):
            await enter(stream)
    assert len(server.received) == 1
