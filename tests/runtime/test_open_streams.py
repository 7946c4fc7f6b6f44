"""How many streams a caller may have open: each has its own number, and gets its places back."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from outrider.v1 import draft_pb2, draft_pb2_grpc, generation_pb2, generation_pb2_grpc
from outrider_contract.errors import Reason
from outrider_runtime.server import ServerSettings
from runtime.echo_service import GENERATION, Echo

TIMEOUT = 20
MOST = 2


@pytest.fixture(params=["keys", "addresses"])
def settings(tmp_path: Path, request: pytest.FixtureRequest) -> ServerSettings:
    if request.param == "addresses":
        return ServerSettings(max_streams_per_caller=MOST)
    keys = tmp_path / "keys"
    keys.write_text("anna the-secret-key-of-anna\nbert the-secret-key-of-bert\n")
    return ServerSettings(api_keys_file=keys, max_streams_per_caller=MOST)


def options(caller: str = "anna") -> dict[str, Any]:
    return {
        "metadata": (("authorization", f"Bearer the-secret-key-of-{caller}"),),
        "timeout": TIMEOUT,
    }


async def opened(echo: Echo, text: str, caller: str = "anna") -> Any:
    """A stream of which one message was read."""
    stub: Any = generation_pb2_grpc.GenerationServiceStub(echo.channel)
    call = stub.Generate(generation_pb2.GenerateRequest(text=text), **options(caller))
    await anext(aiter(call))
    return call


async def assert_full(echo: Echo) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await opened(echo, "abc")
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    status = rpc_status.from_call(caught.value)
    assert status is not None
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    for detail in status.details:
        detail.Unpack(info)
        detail.Unpack(retry)
    assert info.reason == Reason.TOO_MANY_STREAMS
    assert retry.retry_delay.seconds >= 1


def num_refused(echo: Echo) -> float:
    labels = {"method": f"/{GENERATION}/Generate", "reason": Reason.TOO_MANY_STREAMS}
    return echo.registry.get_sample_value("outrider_grpc_server_refused_total", labels) or 0.0


async def test_one_stream_more_is_refused_and_counted_until_one_has_ended(echo: Echo) -> None:
    running = [await opened(echo, "wait") for _ in range(MOST)]
    for number in range(3):
        await assert_full(echo)
        # The caller may hear of the status a moment before the call is counted.
        with suppress(TimeoutError):
            async with asyncio.timeout(TIMEOUT):
                while num_refused(echo) < number + 1:
                    await asyncio.sleep(0.01)
        assert num_refused(echo) == number + 1
    echo.generation.release.set()
    for call in running:
        assert "".join([each.chunk.text async for each in call]) == "wait"
    for _ in range(2 * MOST):  # those refused took no place
        call = await opened(echo, "abc")
        assert "".join([each.chunk.text async for each in call]) == "abc"


@pytest.mark.parametrize("text", ["crash", "abort", "invalid", "endless"])
async def test_however_a_stream_ends_its_place_is_free_again(echo: Echo, text: str) -> None:
    for _ in range(3 * MOST):
        echo.generation.closed.clear()
        call = await opened(echo, text)
        if text == "endless":
            call.cancel()
        else:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await anext(aiter(call))
            assert caught.value.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED
        async with asyncio.timeout(TIMEOUT):
            await echo.generation.closed.wait()


async def test_a_full_caller_is_still_answered_what_is_no_stream(echo: Echo) -> None:
    running = [await opened(echo, "wait") for _ in range(MOST)]
    stub: Any = generation_pb2_grpc.GenerationServiceStub(echo.channel)
    answer = await stub.Tokenize(generation_pb2.TokenizeRequest(text="abc"), **options())
    assert list(answer.token_ids) == [3]
    for call in running:
        call.cancel()


async def test_streams_in_both_directions_count_as_well(echo: Echo) -> None:
    running = [await opened(echo, "wait") for _ in range(MOST)]
    stub: Any = draft_pb2_grpc.DraftServiceStub(echo.channel)
    frames = [draft_pb2.SpeculateRequest(opens=[draft_pb2.Open(session=1)])]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await anext(aiter(stub.Speculate(iter(frames), **options())))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    for call in running:
        call.cancel()


@pytest.mark.parametrize("settings", ["keys"], indirect=True)
async def test_another_caller_has_places_of_its_own(echo: Echo) -> None:
    running = [await opened(echo, "wait") for _ in range(MOST)]
    await assert_full(echo)
    others = [await opened(echo, "wait", "bert") for _ in range(MOST)]
    for call in (*running, *others):
        call.cancel()
