"""A running echo server and a channel to it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import grpc
import pytest
from outrider_runtime.metrics import CallMetrics, new_registry
from outrider_runtime.server import ServerSettings
from runtime.echo_service import Echo, EchoGeneration, echo_server


@pytest.fixture
async def settings() -> ServerSettings:
    return ServerSettings()


@pytest.fixture
async def echo(settings: ServerSettings) -> AsyncIterator[Echo]:
    registry = new_registry()
    generation = EchoGeneration()
    server = echo_server(generation, settings, observe=CallMetrics(registry).observe)
    port = await server.start()
    server.set_serving(True)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield Echo(generation, server, channel, registry)
    await server.stop(0)
