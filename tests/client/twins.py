"""Both clients behind one asyncio face, so that a test of one is a test of the other.

The synchronous client runs in a thread of its own for each call, as it would in a real program.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Protocol

from outrider_client import AsyncClient, AsyncStream, Chunk, Client, Completion, Stream


class TwinStream(Protocol):
    """What tests need of a stream."""

    @property
    def inner(self) -> Stream | AsyncStream: ...

    async def next(self) -> Chunk | None:
        """The next chunk; None at the end."""

    async def collect(self) -> Completion: ...


class Twin(Protocol):
    """What tests need of a client."""

    @property
    def client(self) -> Client | AsyncClient: ...

    async def call(self, method: str, /, *args: Any, **kwargs: Any) -> Any:
        """Calls a method that is not `stream`."""

    def stream(self, *args: Any, **kwargs: Any) -> Any:
        """An async context manager of a TwinStream."""


class SyncTwinStream:
    def __init__(self, inner: Stream) -> None:
        self.inner = inner

    async def next(self) -> Chunk | None:
        # StopIteration cannot cross a future
        return await asyncio.to_thread(lambda: next(self.inner, None))

    async def collect(self) -> Completion:
        return await asyncio.to_thread(self.inner.collect)


class SyncTwin:
    def __init__(self, client: Client) -> None:
        self.client = client

    async def call(self, method: str, /, *args: Any, **kwargs: Any) -> Any:
        return await asyncio.to_thread(getattr(self.client, method), *args, **kwargs)

    @asynccontextmanager
    async def stream(self, *args: Any, **kwargs: Any) -> AsyncIterator[SyncTwinStream]:
        stream = self.client.stream(*args, **kwargs)
        await asyncio.to_thread(stream.__enter__)
        try:
            yield SyncTwinStream(stream)
        finally:
            await asyncio.to_thread(stream.__exit__, None, None, None)


class AsyncTwinStream:
    def __init__(self, inner: AsyncStream) -> None:
        self.inner = inner

    async def next(self) -> Chunk | None:
        return await anext(self.inner, None)

    async def collect(self) -> Completion:
        return await self.inner.collect()


class AsyncTwin:
    def __init__(self, client: AsyncClient) -> None:
        self.client = client

    async def call(self, method: str, /, *args: Any, **kwargs: Any) -> Any:
        return await getattr(self.client, method)(*args, **kwargs)

    @asynccontextmanager
    async def stream(self, *args: Any, **kwargs: Any) -> AsyncIterator[AsyncTwinStream]:
        async with self.client.stream(*args, **kwargs) as stream:
            yield AsyncTwinStream(stream)


async def enter(stream: Stream | AsyncStream) -> None:
    """Enters a stream of either kind, without leaving it."""
    if isinstance(stream, AsyncStream):
        await stream.__aenter__()
    else:
        await asyncio.to_thread(stream.__enter__)
