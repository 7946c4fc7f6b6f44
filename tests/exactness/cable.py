"""A network cable that can be cut: forwards bytes between a target and a draft service.

Knows nothing of what it carries.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

_CHUNK = 65_536


class Cable:
    """A TCP forwarder on loopback."""

    def __init__(self, upstream: str) -> None:
        host, port = upstream.rsplit(":", 1)
        self._upstream = (host, int(port))
        self._ends: set[asyncio.StreamWriter] = set()
        self._passable = asyncio.Event()
        self._passable.set()
        self.port = 0

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def cut(self) -> None:
        """Break every connection without a goodbye. New ones come through."""
        for writer in list(self._ends):
            writer.transport.abort()

    def clog(self) -> None:
        """Carry nothing any more, in either direction; the connections stay."""
        self._passable.clear()

    def clear(self) -> None:
        """Carry again, first what has piled up."""
        self._passable.set()

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        try:
            there_reader, there_writer = await asyncio.open_connection(*self._upstream)
        except OSError:
            writer.transport.abort()
            return
        self._ends |= {writer, there_writer}
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(self._carry(reader, there_writer))
                both.create_task(self._carry(there_reader, writer))
        finally:
            self._ends -= {writer, there_writer}
            for end in (writer, there_writer):
                end.transport.abort()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(_CHUNK):
                await self._passable.wait()
                writer.write(data)
                await writer.drain()
        writer.transport.abort()


@asynccontextmanager
async def cable(upstream: str) -> AsyncIterator[Cable]:
    """Lay a cable to an address until the block ends."""
    laid = Cable(upstream)
    server = await asyncio.start_server(laid.connected, "127.0.0.1", 0)
    laid.port = server.sockets[0].getsockname()[1]
    try:
        yield laid
    finally:
        laid.clear()
        server.close()
        laid.cut()
        await server.wait_closed()
