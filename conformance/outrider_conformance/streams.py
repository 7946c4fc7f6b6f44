"""What carries the frames of a draft link: a call over gRPC, or a servicer in the same process."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any, Protocol

import grpc
import grpc.aio
from outrider.v1 import draft_pb2, draft_pb2_grpc

LinkCall = grpc.aio.StreamStreamCall[draft_pb2.SpeculateRequest, draft_pb2.SpeculateResponse]


class LinkEnded(Exception):
    """The drafter ended the link.

    Attributes:
        code: Its status; None when the frames simply stopped.
        details: Why, in the drafter's words.
        trailers: What came with the status.
    """

    def __init__(
        self,
        code: grpc.StatusCode | None,
        details: str,
        trailers: Iterable[tuple[str, str | bytes]] = (),
    ) -> None:
        super().__init__(f"{code.name if code else 'ended'}: {details}")
        self.code = code
        self.details = details
        self.trailers = tuple(trailers)


class Stream(Protocol):
    """The target's end of a link."""

    async def write(self, frame: draft_pb2.SpeculateRequest) -> None:
        """Send a frame; raises `LinkEnded`."""

    async def read(self) -> draft_pb2.SpeculateResponse:
        """Wait for a frame; raises `LinkEnded`."""

    async def kill(self) -> None:
        """Cut the link, as a target that dies would."""


class GrpcStream:
    """A link over gRPC."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        """Call `Speculate` on a channel, which stays the caller's."""
        stub: draft_pb2_grpc.DraftServiceAsyncStub = draft_pb2_grpc.DraftServiceStub(channel)
        self.call = stub.Speculate()
        """The call itself."""

    async def write(self, frame: draft_pb2.SpeculateRequest) -> None:
        """Send a frame."""
        try:
            await self.call.write(frame)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            raise await self._end() from None

    async def read(self) -> draft_pb2.SpeculateResponse:
        """Wait for a frame."""
        try:
            frame = await self.call.read()
        except grpc.aio.AioRpcError:
            raise await self._end() from None
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise  # the reader was cancelled, not the call
            raise LinkEnded(grpc.StatusCode.CANCELLED, "the link was cut") from None
        if not isinstance(frame, draft_pb2.SpeculateResponse):
            raise await self._end()
        return frame

    async def kill(self) -> None:
        """Cancel the call."""
        self.call.cancel()

    async def _end(self) -> LinkEnded:
        return LinkEnded(
            await self.call.code(),
            await self.call.details() or "",
            await self.call.trailing_metadata() or (),
        )


Handler = Callable[[AsyncIterator[draft_pb2.SpeculateRequest], Any], AsyncIterator[Any]]


class InProcessStream:
    """A link to a servicer's `Speculate` without a network: frames are passed as they are."""

    def __init__(self, speculate: Handler) -> None:
        """Start the handler in the running event loop.

        Args:
            speculate: The servicer's method: takes an iterator of frames and a context that it
                must not need, gives an iterator of frames.
        """
        self._outward: asyncio.Queue[draft_pb2.SpeculateRequest] = asyncio.Queue()
        self._inward: asyncio.Queue[draft_pb2.SpeculateResponse | LinkEnded] = asyncio.Queue()
        self._handler = asyncio.create_task(self._serve(speculate))

    async def write(self, frame: draft_pb2.SpeculateRequest) -> None:
        """Pass a frame on."""
        self._outward.put_nowait(frame)

    async def read(self) -> draft_pb2.SpeculateResponse:
        """Wait for a frame."""
        frame = await self._inward.get()
        if isinstance(frame, LinkEnded):
            self._inward.put_nowait(frame)  # whoever reads on hears it again
            raise frame
        return frame

    async def kill(self) -> None:
        """Cancel the handler."""
        self._handler.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._handler

    async def _serve(self, speculate: Handler) -> None:
        end = LinkEnded(None, "the drafter ended the link")
        try:
            async for frame in speculate(self._frames(), None):
                self._inward.put_nowait(frame)
        except asyncio.CancelledError:
            end = LinkEnded(grpc.StatusCode.CANCELLED, "the link was cut")
            raise
        except Exception as fault:  # the servicer's; one with a code of its own says which
            end = LinkEnded(getattr(fault, "code", grpc.StatusCode.UNKNOWN), str(fault))
        finally:
            self._inward.put_nowait(end)

    async def _frames(self) -> AsyncIterator[draft_pb2.SpeculateRequest]:
        while True:
            yield await self._outward.get()
