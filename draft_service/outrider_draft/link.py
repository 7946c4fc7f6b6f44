"""One target's stream, as the event loop sees it: what is unsent, how far reading may run ahead.

Knows nothing of protobuf or threads: everything here happens on the loop.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable

from outrider_runtime.errors import OutriderError, Overloaded

from outrider_draft.updates import Message

MAX_FRAMES_AHEAD = 8
"""Frames that may wait for the drafting thread before reading stops: the stream's own flow control
then reaches the target."""

MAX_UNREAD_MESSAGES = 65_536
"""A target that lets so many messages pile up does not read, and loses its stream."""

MAX_MESSAGES_PER_FRAME = 1_024


class LinkClosed(Exception):
    """The stream has ended without an error."""


class Link:
    """What a stream's handler, its reader and the drafting thread's deliveries share."""

    def __init__(self, stream: int) -> None:
        self.stream = stream
        """Number of the stream, unique in the service's life."""
        self._unread: deque[Message] = deque()
        self._news = asyncio.Event()
        self._frames_ahead = asyncio.Semaphore(MAX_FRAMES_AHEAD)
        self._end: OutriderError | LinkClosed | None = None

    async def frame_granted(self) -> None:
        """Wait until another frame may be handed to the drafting thread."""
        await self._frames_ahead.acquire()

    def frame_taken(self) -> None:
        """Note that the drafting thread has applied a frame."""
        self._frames_ahead.release()

    def post(self, messages: Iterable[Message]) -> None:
        """Queue messages to the target. Never blocks."""
        if self._end is not None:
            return
        self._unread.extend(messages)
        if len(self._unread) > MAX_UNREAD_MESSAGES:
            self._unread.clear()
            self.end(Overloaded(1.0, "the target does not read what it is sent"))
        self._news.set()

    def end(self, error: OutriderError | None = None) -> None:
        """End the stream, once what is queued was sent; the first end counts."""
        if self._end is None:
            self._end = error or LinkClosed()
        self._news.set()

    async def next_messages(self) -> list[Message]:
        """Wait for messages and take what fits one frame.

        Raises:
            LinkClosed: The stream has ended and everything was taken.
            OutriderError: Likewise, with the reason for the target.
        """
        while not self._unread:
            if self._end is not None:
                raise self._end
            self._news.clear()
            await self._news.wait()
        count = min(len(self._unread), MAX_MESSAGES_PER_FRAME)
        return [self._unread.popleft() for _ in range(count)]
