"""A scripted server and both clients of it. Nobody waits between tries; the waits are noted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from client.fake_server import PATIENCE, FakeServer
from client.twins import AsyncTwin, SyncTwin, Twin
from outrider_client import AsyncClient, Client


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer() as running:
        yield running


@pytest.fixture
def waits() -> list[float]:
    """Seconds that a client would have waited between tries."""
    return []


@pytest.fixture
def client(server: FakeServer, waits: list[float]) -> Iterator[Client]:
    with Client(server.address, sleep=waits.append) as connected:
        yield connected


@pytest.fixture(params=["Client", "AsyncClient"])
async def connect(request: pytest.FixtureRequest, waits: list[float]) -> Callable[..., Any]:
    """Makes either client: an async context manager of a Twin."""

    async def wait(seconds: float) -> None:
        waits.append(seconds)

    @asynccontextmanager
    async def connected(address: str, **options: Any) -> AsyncIterator[Twin]:
        if request.param == "Client":
            with Client(address, **{"sleep": waits.append, **options}) as client:
                yield SyncTwin(client)
        else:
            async with AsyncClient(address, **{"sleep": wait, **options}) as async_client:
                yield AsyncTwin(async_client)

    return connected


@pytest.fixture
async def twin(connect: Callable[..., Any], server: FakeServer) -> AsyncIterator[Twin]:
    async with connect(server.address) as connected:
        yield connected


@pytest.fixture
def ended(server: FakeServer) -> Callable[[], Any]:
    """Waits until the server has seen a caller go; gives the id of that request."""

    async def wait() -> str:
        return await asyncio.to_thread(server.ended.get, timeout=PATIENCE)

    return wait
