"""The server starts clearly or not at all, tells its health, and stops the way it was asked to."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from outrider.v1 import generation_pb2, generation_pb2_grpc
from outrider_runtime.errors import StartupError
from outrider_runtime.listening import check_exposure
from outrider_runtime.server import GrpcServer, ServerSettings, run_until_signalled
from runtime.echo_service import DRAFT, GENERATION, Echo, EchoGeneration, echo_server

TIMEOUT = 20
CERTIFICATES = Path(__file__).parent / "certificates"
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


async def health(echo: Echo, service: str = "") -> int:
    stub = health_pb2_grpc.HealthStub(echo.channel)
    request = health_pb2.HealthCheckRequest(service=service)
    answer = await stub.Check(request, timeout=TIMEOUT)
    return int(answer.status)


def tokenize(channel: grpc.aio.Channel, text: str) -> Any:
    stub = generation_pb2_grpc.GenerationServiceStub(channel)
    return stub.Tokenize(generation_pb2.TokenizeRequest(text=text), timeout=TIMEOUT)


async def refusal(settings: ServerSettings) -> str:
    server = echo_server(EchoGeneration(), settings)
    with pytest.raises(StartupError) as caught:
        await server.start()
    text = str(caught.value)
    assert "\n" not in text
    return text


async def test_a_taken_port_is_one_clear_line(capfd: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        text = await refusal(ServerSettings(port=port))
    assert f"port {port} on 127.0.0.1 is taken" in text
    assert capfd.readouterr().err == ""  # not a word from gRPC itself


async def test_a_second_server_does_not_share_the_port_of_the_first() -> None:
    first = echo_server(EchoGeneration())
    port = await first.start()
    try:
        assert "is taken" in await refusal(ServerSettings(port=port))
    finally:
        await first.stop(0)


async def test_a_port_is_free_again_after_a_stop() -> None:
    first = echo_server(EchoGeneration())
    port = await first.start()
    await first.stop(0)
    second = echo_server(EchoGeneration(), ServerSettings(port=port))
    assert await second.start() == port
    await second.stop(0)


@pytest.mark.parametrize(
    ("host", "said"),
    [("192.0.2.1", "not an address of this machine"), ("no such host", "cannot be resolved")],
)
async def test_a_host_that_is_not_ours_is_one_clear_line(host: str, said: str) -> None:
    assert said in await refusal(ServerSettings(host=host))


async def test_every_name_is_healthy_when_serving_and_only_then(echo: Echo) -> None:
    for service in ("", GENERATION, DRAFT):
        assert await health(echo, service) == SERVING
    echo.server.set_serving(False)
    for service in ("", GENERATION, DRAFT):
        assert await health(echo, service) == NOT_SERVING


async def test_a_server_does_not_serve_before_it_says_so() -> None:
    server = echo_server(EchoGeneration())
    port = await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT)
        assert answer.status == NOT_SERVING
    await server.stop(0)


async def test_the_health_of_an_unknown_service_is_not_found(echo: Echo) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await health(echo, "nobody")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_every_watcher_sees_every_change_though_others_leave(echo: Echo) -> None:
    stub = health_pb2_grpc.HealthStub(echo.channel)
    request = health_pb2.HealthCheckRequest(service=GENERATION)
    leaver, watcher = (stub.Watch(request, timeout=TIMEOUT) for _ in range(2))
    assert (await leaver.read()).status == SERVING
    assert (await watcher.read()).status == SERVING
    leaver.cancel()
    echo.server.set_serving(False)
    assert (await watcher.read()).status == NOT_SERVING
    echo.server.set_serving(True)
    assert (await watcher.read()).status == SERVING
    watcher.cancel()


async def test_watching_an_unknown_service_says_so_and_goes_on(echo: Echo) -> None:
    stub = health_pb2_grpc.HealthStub(echo.channel)
    call = stub.Watch(health_pb2.HealthCheckRequest(service="nobody"), timeout=TIMEOUT)
    assert (await call.read()).status == SERVICE_UNKNOWN
    call.cancel()


async def test_reflection_lists_the_services_and_describes_them(echo: Echo) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(echo.channel)
    questions = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol=GENERATION),
    ]
    listing, description = [
        answer async for answer in stub.ServerReflectionInfo(iter(questions), timeout=TIMEOUT)
    ]
    names = {service.name for service in listing.list_services_response.service}
    assert {GENERATION, DRAFT, "grpc.health.v1.Health"} <= names
    assert description.file_descriptor_response.file_descriptor_proto


async def test_a_graceful_stop_lets_running_calls_finish_and_refuses_new_ones(echo: Echo) -> None:
    running = asyncio.ensure_future(tokenize(echo.channel, "wait"))
    await asyncio.wait_for(echo.generation.started.wait(), TIMEOUT)
    stopping = asyncio.create_task(echo.server.stop(TIMEOUT))
    await refused(echo)
    assert not running.done()
    echo.generation.release.set()
    assert list((await running).token_ids) == [4]
    await asyncio.wait_for(stopping, TIMEOUT)


async def test_a_call_that_outlives_the_grace_period_is_ended(echo: Echo) -> None:
    running = asyncio.ensure_future(tokenize(echo.channel, "wait"))
    await asyncio.wait_for(echo.generation.started.wait(), TIMEOUT)
    await asyncio.wait_for(echo.server.stop(0.05), TIMEOUT)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await running
    assert caught.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)


async def test_health_watchers_do_not_hold_up_a_graceful_stop(echo: Echo) -> None:
    stub = health_pb2_grpc.HealthStub(echo.channel)
    call = stub.Watch(health_pb2.HealthCheckRequest(), timeout=TIMEOUT)
    assert (await call.read()).status == SERVING
    stopping = asyncio.create_task(echo.server.stop(600))
    assert (await call.read()).status == NOT_SERVING
    await asyncio.wait_for(stopping, TIMEOUT)


async def refused(echo: Echo) -> None:
    for _ in range(1000):
        try:
            await tokenize(echo.channel, "a")
        except grpc.aio.AioRpcError as error:
            code = error.code()
            break
    else:
        pytest.fail("new calls are still taken")
    # A call that arrives in the moment of the stop is cancelled rather than refused.
    assert code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)


@asynccontextmanager
async def signalled(server: GrpcServer, **options: Any) -> AsyncIterator[asyncio.Task[None]]:
    """A server that waits for signals, its handlers in place."""
    before = signal.getsignal(signal.SIGTERM)
    task = asyncio.create_task(run_until_signalled(server, **options))
    for _ in range(100):
        await asyncio.sleep(0)
        if signal.getsignal(signal.SIGTERM) != before:
            break
    else:
        pytest.fail("no signal handler")
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_drains_first_with_health_not_serving_and_the_port_still_open(
    echo: Echo, number: int
) -> None:
    draining, drained = asyncio.Event(), asyncio.Event()

    async def drain() -> None:
        draining.set()
        await drained.wait()

    async with signalled(echo.server, drain=drain) as task:
        os.kill(os.getpid(), number)
        await asyncio.wait_for(draining.wait(), TIMEOUT)
        assert await health(echo) == NOT_SERVING
        assert list((await tokenize(echo.channel, "abc")).token_ids) == [3]
        drained.set()
        await asyncio.wait_for(task, TIMEOUT)


async def test_a_second_signal_ends_everything_at_once(echo: Echo) -> None:
    draining = asyncio.Event()

    async def drain() -> None:
        draining.set()
        await asyncio.Event().wait()

    async with signalled(echo.server, drain=drain) as task:
        running = asyncio.ensure_future(tokenize(echo.channel, "wait"))
        await asyncio.wait_for(echo.generation.started.wait(), TIMEOUT)
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.wait_for(draining.wait(), TIMEOUT)
        assert not running.done()
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.wait_for(task, TIMEOUT)
        with pytest.raises(grpc.aio.AioRpcError):
            await running


async def test_a_service_can_stop_itself_without_a_signal(echo: Echo) -> None:
    stopping = asyncio.Event()
    async with signalled(echo.server, stopping=stopping) as task:
        stopping.set()
        await asyncio.wait_for(task, TIMEOUT)
    await refused(echo)


class TestWithShortGrace:
    """The grace period is over before the drain is."""

    @pytest.fixture
    async def settings(self) -> ServerSettings:
        return ServerSettings(grace_seconds=0.05)

    async def test_a_drain_that_never_ends_is_cut_off_by_the_grace_period(self, echo: Echo) -> None:
        cancelled = asyncio.Event()

        async def drain() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.set()

        async with signalled(echo.server, drain=drain) as task:
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.wait_for(task, TIMEOUT)
        assert cancelled.is_set()


def tls(**options: Any) -> ServerSettings:
    return ServerSettings(
        ssl_keyfile=CERTIFICATES / "server.key", ssl_certfile=CERTIFICATES / "server.pem", **options
    )


async def tokenize_over_tls(settings: ServerSettings, client: str | None) -> int:
    def pem(name: str) -> bytes:
        return (CERTIFICATES / name).read_bytes()

    credentials = grpc.ssl_channel_credentials(
        pem("authority.pem"),
        pem(f"{client}.key") if client else None,
        pem(f"{client}.pem") if client else None,
    )
    server = echo_server(EchoGeneration(), settings)
    port = await server.start()
    try:
        async with grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials) as channel:
            answer = await tokenize(channel, "abc")
            return int(answer.token_ids[0])
    finally:
        await server.stop(0)


async def test_tls_serves_with_the_given_certificate() -> None:
    assert await tokenize_over_tls(tls(), client=None) == 3


async def test_probes_have_a_port_without_tls_that_answers_nothing_but_health() -> None:
    settings = ServerSettings(
        ssl_keyfile=CERTIFICATES / "server.key",
        ssl_certfile=CERTIFICATES / "server.pem",
        ssl_ca_certs=CERTIFICATES / "authority.pem",
        health_port=0,
    )
    server = echo_server(EchoGeneration(), settings)
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.health_port}") as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest(service=GENERATION)
        assert (await stub.Check(request, timeout=TIMEOUT)).status == NOT_SERVING
        server.set_serving(True)
        assert (await stub.Check(request, timeout=TIMEOUT)).status == SERVING
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await tokenize(channel, "abc")
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
        watch = stub.Watch(request, timeout=TIMEOUT)
        assert (await watch.read()).status == SERVING
        await server.stop(0)
        assert (await watch.read()).status == NOT_SERVING


async def test_a_taken_port_for_probes_is_one_clear_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        text = await refusal(ServerSettings(health_port=port))
    assert f"port {port} on 127.0.0.1 is taken" in text


async def test_mutual_tls_serves_clients_of_the_authority() -> None:
    settings = tls(ssl_ca_certs=CERTIFICATES / "authority.pem")
    assert await tokenize_over_tls(settings, client="client") == 3


@pytest.mark.parametrize("client", [None, "stranger"])
async def test_mutual_tls_turns_others_away(client: str | None) -> None:
    settings = tls(ssl_ca_certs=CERTIFICATES / "authority.pem")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await tokenize_over_tls(settings, client=client)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"ssl_keyfile": "server.key"}, "go together"),
        ({"ssl_certfile": "server.pem"}, "go together"),
        ({"ssl_ca_certs": "authority.pem"}, "needs --ssl-keyfile"),
        ({"ssl_keyfile": "server.key", "ssl_certfile": "missing.pem"}, "cannot read"),
        ({"ssl_keyfile": "client.key", "ssl_certfile": "server.pem"}, "its private key"),
        ({"ssl_keyfile": "make.sh", "ssl_certfile": "make.sh"}, "PEM"),
        (
            {
                "ssl_keyfile": "server.key",
                "ssl_certfile": "server.pem",
                "ssl_ca_certs": "make.sh",
            },
            "does not hold certificates",
        ),
    ],
)
async def test_tls_files_that_are_no_good_are_one_clear_line(
    files: dict[str, str], said: str
) -> None:
    paths: dict[str, Any] = {name: CERTIFICATES / file for name, file in files.items()}
    assert said in await refusal(ServerSettings(**paths))


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
async def test_other_machines_are_not_listened_to_in_the_clear_by_accident(host: str) -> None:
    assert "--insecure" in await refusal(ServerSettings(host=host))


@pytest.mark.parametrize(
    ("host", "encrypted", "insecure"),
    [
        ("127.0.0.1", False, False),
        ("::1", False, False),
        ("localhost", False, False),
        ("0.0.0.0", False, True),
        ("0.0.0.0", True, False),
    ],
)
def test_what_is_harmless_or_meant_is_listened_to(
    host: str, encrypted: bool, insecure: bool
) -> None:
    check_exposure(host, encrypted=encrypted, insecure=insecure)  # does not raise
