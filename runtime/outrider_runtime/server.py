"""A gRPC server as both services run it: health, reflection, interceptor, TLS, graceful stop.

Knows nothing of what the services do; they hand in how to register themselves and, for the end, how
to drain.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc
import structlog
from grpc_health.v1 import health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from outrider_runtime import health
from outrider_runtime.caller_keys import CallerKeys
from outrider_runtime.certificates import server_credentials
from outrider_runtime.errors import StartupError
from outrider_runtime.interceptors import CallInterceptor, CallObserver
from outrider_runtime.listening import check_address, check_exposure, join_address
from outrider_runtime.tracing import Tracer

Register = Callable[[grpc.aio.Server], None]

_log = structlog.get_logger(__name__)

_MAX_MESSAGE_BYTES = 4 << 20

MAY_PING = ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000)
"""Else a peer that pings an idle connection, as targets do, is taken for an attacker."""

# There is no maximum connection age: it would cut streams that outlive its grace, and nothing here
# needs clients to reconnect.
_OPTIONS: tuple[tuple[str, int], ...] = (
    # The default lets two servers share a port without a word; a second one should fail.
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
    ("grpc.max_metadata_size", 8 << 10),
    # Peers that vanished without closing are noticed after 80 seconds.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.keepalive_permit_without_calls", 1),
    MAY_PING,
    ("grpc.http2.max_ping_strikes", 3),
    ("grpc.max_connection_idle_ms", 900_000),
    ("grpc.max_concurrent_streams", 1024),
)


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """Where and how to listen."""

    host: str = "127.0.0.1"
    """Address to bind; loopback unless asked otherwise."""
    port: int = 0
    """Port to bind; 0 takes a free one."""
    ssl_keyfile: Path | None = None
    """Private key, PEM. With `ssl_certfile`: TLS."""
    ssl_certfile: Path | None = None
    """Certificate chain, PEM."""
    ssl_ca_certs: Path | None = None
    """Authorities of client certificates, PEM. When given, every client must have one."""
    api_key: str | None = None
    """What callers must send as `authorization: Bearer KEY`. Health checks go without."""
    api_keys_file: Path | None = None
    """More such keys, with the names of who has them: see `callers`."""
    insecure: bool = False
    """Whether to listen to other machines without TLS."""
    max_streams_per_caller: int | None = None
    """Open streams of one caller; more are refused. None: any number."""
    grace_seconds: float = 30
    """How long running calls may go on after the server was told to stop."""
    health_port: int | None = None
    """Port that answers health checks and nothing else, in the clear: probes of orchestrators speak
    no TLS. 0 takes a free one, None: health is told on the serving port alone."""


class GrpcServer:
    """A grpc.aio server with health, reflection and the interceptor. Lives on one event loop.

    Args:
        settings: Where and how to listen.
        services: Full name of each service, and what registers its servicer.
        observe: Told of every call that ended.
        tracer: Records calls; None: nothing does.

    Raises:
        StartupError: The file with keys is no good.
    """

    def __init__(
        self,
        settings: ServerSettings,
        *,
        services: Sequence[tuple[str, Register]],
        observe: CallObserver | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        self._settings = settings
        self._services = services
        keys = CallerKeys(settings.api_key, settings.api_keys_file)
        self._interceptor = CallInterceptor(
            keys,
            observe=observe,
            tracer=tracer,
            max_streams_per_caller=settings.max_streams_per_caller,
        )
        self._health = health.HealthServicer(name for name, _ in services)
        self._server: grpc.aio.Server | None = None
        self._health_server: grpc.aio.Server | None = None
        self.health_port: int | None = None
        """The bound port for health checks alone, once started and if there is one."""

    @property
    def grace_seconds(self) -> float:
        """How long running calls may go on after the server was told to stop."""
        return self._settings.grace_seconds

    async def start(self) -> int:
        """Binds and listens; health says NOT_SERVING until `set_serving(True)`.

        Returns:
            The bound port.

        Raises:
            StartupError: The port is taken, the host is not ours, the TLS files are no good, or
                there are none and other machines could listen in.
        """
        settings = self._settings
        credentials = server_credentials(
            settings.ssl_keyfile, settings.ssl_certfile, settings.ssl_ca_certs
        )
        check_address(settings.host, settings.port)
        check_exposure(settings.host, encrypted=credentials is not None, insecure=settings.insecure)
        if settings.health_port is not None:
            check_address(settings.host, settings.health_port)
        server = grpc.aio.server(interceptors=(self._interceptor,), options=_OPTIONS)
        for _, register in self._services:
            register(server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        names = (
            *(name for name, _ in self._services),
            health.SERVICE_NAME,
            reflection.SERVICE_NAME,
        )
        reflection.enable_server_reflection(names, server)
        address = join_address(settings.host, settings.port)
        try:
            if credentials is None:
                port = server.add_insecure_port(address)
            else:
                port = server.add_secure_port(address, credentials)
        except RuntimeError:
            raise StartupError(f"cannot listen on {address}") from None
        await server.start()
        self._server = server
        if settings.health_port is not None:
            await self._serve_health(settings.host, settings.health_port)
        return port

    async def _serve_health(self, host: str, port: int) -> None:
        server = grpc.aio.server(options=_OPTIONS)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        address = join_address(host, port)
        try:
            self.health_port = server.add_insecure_port(address)
        except RuntimeError:
            raise StartupError(f"cannot listen on {address} for health checks") from None
        await server.start()
        self._health_server = server

    def set_serving(self, serving: bool) -> None:
        """What health answers for the server and each of its services."""
        self._health.set_serving(serving)

    async def stop(self, grace: float | None = None) -> None:
        """Says NOT_SERVING, refuses new calls and waits for the running ones.

        Args:
            grace: Seconds they get; those that still run then are cancelled. The settings' when
            None.
        """
        self._health.close()
        if self._server is not None:
            await self._server.stop(self._settings.grace_seconds if grace is None else grace)
        if self._health_server is not None:  # last: probes hear NOT_SERVING until the end
            await self._health_server.stop(0)


async def run_until_signalled(
    server: GrpcServer,
    *,
    drain: Callable[[], Awaitable[None]] | None = None,
    stopping: asyncio.Event | None = None,
) -> None:
    """Serves until SIGTERM or SIGINT, then stops gracefully; a second signal stops at once.

    Gracefully: health says NOT_SERVING, `drain` runs, and what then still runs has the rest of the
    grace period.

    Args:
        server: A started server.
        drain: Refuses new work and returns when the running work is done. The server still listens
            meanwhile, so that new calls hear the reason. Cancelled when the grace period is over.
        stopping: Set from outside to stop without a signal; set here when a signal came.
    """
    loop = asyncio.get_running_loop()
    first = stopping or asyncio.Event()
    second = asyncio.Event()

    def on_signal() -> None:
        (second if first.is_set() else first).set()

    signals = (signal.SIGTERM, signal.SIGINT)
    for number in signals:
        loop.add_signal_handler(number, on_signal)
    try:
        await first.wait()
        _log.info("drain_started", grace_seconds=server.grace_seconds)
        server.set_serving(False)
        graceful = asyncio.create_task(_stop_gracefully(server, drain))
        impatient = asyncio.create_task(second.wait())
        try:
            await asyncio.wait({graceful, impatient}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            interrupted = not graceful.done()
            graceful.cancel()
            impatient.cancel()
            await asyncio.gather(graceful, impatient, return_exceptions=True)
        if interrupted:
            _log.warning("drain_interrupted")
            await server.stop(0)
        else:
            graceful.result()
        _log.info("server_stopped")
    finally:
        for number in signals:
            loop.remove_signal_handler(number)


async def _stop_gracefully(server: GrpcServer, drain: Callable[[], Awaitable[None]] | None) -> None:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + server.grace_seconds
    if drain is not None:
        try:
            async with asyncio.timeout_at(deadline):
                await drain()
        except TimeoutError:
            _log.warning("drain_timed_out", grace_seconds=server.grace_seconds)
    await server.stop(max(0.0, deadline - loop.time()))
