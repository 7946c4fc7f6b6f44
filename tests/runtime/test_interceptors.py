"""What surrounds every call: request ids, keys, errors, closing, counting."""

from __future__ import annotations

import asyncio
import re
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status
from outrider.v1 import draft_pb2, draft_pb2_grpc, generation_pb2, generation_pb2_grpc
from outrider_contract.errors import DOMAIN, Reason
from outrider_runtime.caller_keys import CallerKeys
from outrider_runtime.interceptors import CallInterceptor
from outrider_runtime.server import ServerSettings
from runtime.echo_service import DRAFT, GENERATION, Echo
from structlog.testing import capture_logs

TIMEOUT = 20
UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


def details(error: grpc.aio.AioRpcError) -> dict[str, Any]:
    status = rpc_status.from_call(error)
    assert status is not None, error
    found = {}
    for detail in status.details:
        for kind in ("ErrorInfo", "BadRequest", "RetryInfo"):
            message = getattr(error_details_pb2, kind)()
            if detail.Unpack(message):
                found[kind] = message
    return found


async def tokenize(echo: Echo, text: str, **options: Any) -> Any:
    stub = generation_pb2_grpc.GenerationServiceStub(echo.channel)
    request = generation_pb2.TokenizeRequest(text=text)
    return await stub.Tokenize(request, **{"timeout": TIMEOUT, **options})


async def generate(echo: Echo, text: str, *, request_id: str = "", **options: Any) -> str:
    stub = generation_pb2_grpc.GenerationServiceStub(echo.channel)
    request = generation_pb2.GenerateRequest(text=text, request_id=request_id)
    call = stub.Generate(request, timeout=TIMEOUT, **options)
    return "".join([response.chunk.text async for response in call])


async def speculate(echo: Echo, *sessions: int, **options: Any) -> list[int]:
    stub = draft_pb2_grpc.DraftServiceStub(echo.channel)
    frames = [draft_pb2.SpeculateRequest(opens=[draft_pb2.Open(session=s)]) for s in sessions]
    call = stub.Speculate(iter(frames), timeout=TIMEOUT, **options)
    return [grow.session async for response in call for grow in response.grows]


async def raw_call(echo: Echo, method: str, data: bytes, *, streaming: bool = False) -> Any:
    channel: Any = echo.channel
    if not streaming:
        return await channel.unary_unary(f"/{method}")(data, timeout=TIMEOUT)
    call = channel.stream_stream(f"/{method}")(iter([data]), timeout=TIMEOUT)
    return [response async for response in call]


async def test_calls_of_every_shape_pass_through(echo: Echo) -> None:
    assert list((await tokenize(echo, "abc")).token_ids) == [3]
    assert await generate(echo, "abc") == "abc"
    assert await speculate(echo, 4, 5) == [4, 5]


@pytest.mark.parametrize("call", [tokenize, generate])
async def test_an_unknown_exception_is_opaque_to_the_caller_and_whole_in_the_log(
    echo: Echo, call: Any
) -> None:
    with capture_logs() as logs, pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(echo, "crash", metadata=(("x-request-id", "r-1"),))
    error = caught.value
    assert error.code() is grpc.StatusCode.INTERNAL
    assert "r-1" in (error.details() or "")
    info = details(error)["ErrorInfo"]
    assert (info.domain, info.reason) == (DOMAIN, Reason.INTERNAL)
    assert info.metadata["request_id"] == "r-1"
    for leak in ("secret", "ValueError"):
        assert leak not in (error.details() or "")
        assert all(leak.encode() not in _bytes(v) for _, v in error.trailing_metadata())
    (event,) = [e for e in logs if e["event"] == "call_failed"]
    assert event["exc_info"]


async def test_an_unknown_exception_in_a_bidirectional_stream_is_opaque_too(echo: Echo) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await speculate(echo, 1, 666)
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert "secret" not in str(caught.value)
    assert await speculate(echo, 2) == [2]


@pytest.mark.parametrize("call", [tokenize, generate])
async def test_an_error_of_ours_arrives_with_code_field_and_reason(echo: Echo, call: Any) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(echo, "invalid")
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.details() == "text: must not say so"
    found = details(caught.value)
    assert found["ErrorInfo"].reason == Reason.INVALID_FIELD
    assert found["BadRequest"].field_violations[0].field == "text"


async def test_an_overload_says_when_to_retry(echo: Echo) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await generate(echo, "overloaded")
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert details(caught.value)["RetryInfo"].retry_delay.ToTimedelta().total_seconds() == 1.5


async def test_a_handlers_own_abort_is_left_alone(echo: Echo) -> None:
    with capture_logs() as logs, pytest.raises(grpc.aio.AioRpcError) as caught:
        await tokenize(echo, "abort")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert caught.value.details() == "on purpose"
    assert logs == []


@pytest.mark.parametrize(
    ("method", "streaming"),
    [
        (f"{GENERATION}/Tokenize", False),
        (f"{DRAFT}/Speculate", True),
        ("grpc.health.v1.Health/Check", False),
    ],
)
async def test_garbage_bytes_are_an_invalid_argument_that_tells_nothing(
    echo: Echo, method: str, streaming: bool
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await raw_call(echo, method, b"\xff\xff\xff garbage", streaming=streaming)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "DecodeError" not in str(caught.value)
    assert details(caught.value)["ErrorInfo"].reason == Reason.MALFORMED_MESSAGE
    assert list((await tokenize(echo, "still here")).token_ids) == [10]


async def test_garbage_bytes_for_a_server_stream_are_an_invalid_argument(echo: Echo) -> None:
    channel: Any = echo.channel
    call = channel.unary_stream(f"/{GENERATION}/Generate")(b"\x0a\xff", timeout=TIMEOUT)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert echo.generation.seen_ids == []


async def initial_request_id(call: Any) -> str:
    (value,) = [v for k, v in await call.initial_metadata() if k == "x-request-id"]
    return str(value)


async def test_a_request_id_from_metadata_makes_the_round_trip(echo: Echo) -> None:
    stub = generation_pb2_grpc.GenerationServiceStub(echo.channel)
    call = stub.Tokenize(
        generation_pb2.TokenizeRequest(text="a"),
        metadata=(("x-request-id", "mine 1"),),
        timeout=TIMEOUT,
    )
    assert await initial_request_id(call) == "mine 1"
    await call
    assert echo.generation.seen_ids == ["mine 1"]


@pytest.mark.parametrize("given", ["", "x" * 129])
async def test_an_unusable_request_id_is_replaced(echo: Echo, given: str) -> None:
    stub = generation_pb2_grpc.GenerationServiceStub(echo.channel)
    call = stub.Tokenize(
        generation_pb2.TokenizeRequest(), metadata=(("x-request-id", given),), timeout=TIMEOUT
    )
    made_up = await initial_request_id(call)
    assert UUID.fullmatch(made_up)
    await call
    assert echo.generation.seen_ids == [made_up]


async def test_requests_without_an_id_get_different_ones(echo: Echo) -> None:
    await asyncio.gather(*(tokenize(echo, "a") for _ in range(5)))
    assert len({*echo.generation.seen_ids}) == 5


async def test_the_messages_own_request_id_wins(echo: Echo) -> None:
    stub = generation_pb2_grpc.GenerationServiceStub(echo.channel)
    call = stub.Generate(
        generation_pb2.GenerateRequest(text="a", request_id="field"),
        metadata=(("x-request-id", "metadata"),),
        timeout=TIMEOUT,
    )
    assert await initial_request_id(call) == "field"
    assert [r async for r in call]
    assert echo.generation.seen_ids == ["field"]


async def test_a_cancelled_stream_closes_its_handler_at_once_even_while_it_writes(
    echo: Echo,
) -> None:
    stub = generation_pb2_grpc.GenerationServiceStub(echo.channel)
    call = stub.Generate(generation_pb2.GenerateRequest(text="endless"))
    await call.read()
    await asyncio.wait_for(echo.generation.started.wait(), TIMEOUT)
    call.cancel()
    await asyncio.wait_for(echo.generation.closed.wait(), TIMEOUT)


async def test_cancellation_is_not_logged_as_a_failure(echo: Echo) -> None:
    stub = generation_pb2_grpc.GenerationServiceStub(echo.channel)
    with capture_logs() as logs:
        call = stub.Generate(generation_pb2.GenerateRequest(text="wait"))
        await call.read()
        await asyncio.wait_for(echo.generation.started.wait(), TIMEOUT)
        call.cancel()
        await asyncio.wait_for(echo.generation.closed.wait(), TIMEOUT)
    assert logs == []


@pytest.mark.parametrize(
    ("text", "code"), [("abort late", "DEADLINE_EXCEEDED"), ("invalid late", "INVALID_ARGUMENT")]
)
async def test_a_status_that_nobody_is_left_to_hear_is_no_fault_of_ours(
    echo: Echo, text: str, code: str
) -> None:
    with capture_logs() as logs:
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await tokenize(echo, text, timeout=0.05)
        assert ended.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        async with asyncio.timeout(TIMEOUT):
            while not handled(echo, "Tokenize", code):
                await asyncio.sleep(0.01)
    assert not handled(echo, "Tokenize", "INTERNAL")
    assert not [log for log in logs if log["log_level"] == "error"]


def handled(echo: Echo, method: str, code: str) -> float:
    labels = {"method": f"/{GENERATION}/{method}", "code": code}
    return echo.registry.get_sample_value("outrider_grpc_server_handled_total", labels) or 0.0


async def test_calls_are_counted_by_method_and_code(echo: Echo) -> None:
    await tokenize(echo, "a")
    await tokenize(echo, "b")
    for text in ("crash", "invalid", "abort"):
        with pytest.raises(grpc.aio.AioRpcError):
            await tokenize(echo, text)
    expected = {"OK": 2, "INTERNAL": 1, "INVALID_ARGUMENT": 1, "NOT_FOUND": 1}

    def counts() -> dict[str, float]:
        return {code: handled(echo, "Tokenize", code) for code in expected}

    # The caller may hear of the status a moment before the call is counted.
    with suppress(TimeoutError):
        async with asyncio.timeout(TIMEOUT):
            while counts() != expected:
                await asyncio.sleep(0.01)
    assert counts() == expected


async def test_a_handler_that_cannot_be_surrounded_is_not_served() -> None:
    handler: Any = grpc.unary_unary_rpc_method_handler(lambda request, context: request)

    async def continuation(_: grpc.HandlerCallDetails) -> Any:
        return handler

    details: Any = SimpleNamespace(method="/a.B/C")
    with pytest.raises(TypeError, match=r"/a\.B/C"):
        await CallInterceptor(CallerKeys("key")).intercept_service(continuation, details)


class TestWithApiKey:
    """Every service but health wants the key."""

    @pytest.fixture
    async def settings(self) -> ServerSettings:
        return ServerSettings(api_key="k€y")

    @pytest.mark.parametrize("call", [tokenize, generate])
    @pytest.mark.parametrize("sent", [None, "Bearer wrong", "k€y", "Bearer ", ""])
    async def test_a_call_without_the_key_is_unauthenticated(
        self, echo: Echo, call: Any, sent: str | None
    ) -> None:
        metadata = (
            () if sent is None else (("authorization", sent.encode("ascii", "ignore").decode()),)
        )
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(echo, "abc", metadata=metadata)
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        assert details(caught.value)["ErrorInfo"].reason == Reason.UNAUTHENTICATED
        assert echo.generation.seen_ids == []

    async def test_a_bidirectional_stream_without_the_key_is_unauthenticated(
        self, echo: Echo
    ) -> None:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await speculate(echo, 1)
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED

    async def test_health_needs_no_key(self, echo: Echo) -> None:
        stub = health_pb2_grpc.HealthStub(echo.channel)
        answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING


class TestWithAsciiApiKey:
    """The key opens every shape of call."""

    @pytest.fixture
    async def settings(self) -> ServerSettings:
        return ServerSettings(api_key="key")

    async def test_the_key_opens_every_shape_of_call(self, echo: Echo) -> None:
        metadata = (("authorization", "Bearer key"),)
        assert list((await tokenize(echo, "abc", metadata=metadata)).token_ids) == [3]
        assert await generate(echo, "abc", metadata=metadata) == "abc"
        assert await speculate(echo, 4, metadata=metadata) == [4]


class TestWithKeysOfSeveralCallers:
    """Handlers know who calls."""

    @pytest.fixture
    async def settings(self, tmp_path: Path) -> ServerSettings:
        keys = tmp_path / "keys"
        keys.write_text(
            "alice the-key-of-alice-1\nalice the-key-of-alice-2\nbob the-key-of-bob-333\n"
        )
        return ServerSettings(api_keys_file=keys)

    @pytest.mark.parametrize(
        ("key", "caller"),
        [
            ("the-key-of-alice-1", "alice"),
            ("the-key-of-alice-2", "alice"),
            ("the-key-of-bob-333", "bob"),
        ],
    )
    async def test_a_handler_knows_whose_key_it_was(
        self, echo: Echo, key: str, caller: str
    ) -> None:
        await tokenize(echo, "abc", metadata=(("authorization", f"Bearer {key}"),))
        assert echo.generation.seen_callers == [caller]

    async def test_no_key_is_nobody(self, echo: Echo) -> None:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await tokenize(echo, "abc", metadata=(("authorization", "Bearer alice"),))
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_without_keys_anybody_calls(echo: Echo) -> None:
    await tokenize(echo, "abc", metadata=(("authorization", "Bearer whatever"),))
    assert echo.generation.seen_callers == [""]


def _bytes(value: str | bytes) -> bytes:
    return value if isinstance(value, bytes) else value.encode()
