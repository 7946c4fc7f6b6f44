"""A running generation, for event loops: an async context manager that owns the call.

The twin of `_stream`. Knows nothing of how a call is made: the client hands in what does.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from types import TracebackType
from typing import Protocol

import grpc
from outrider.v1 import generation_pb2

from outrider_client._assembly import Assembly, ProtocolError
from outrider_client._completion import BeamProgress, Chunk, Completion, Started
from outrider_client._errors import OutriderError
from outrider_client._interruptions import (
    NOT_ENTERED,
    NOT_FINISHED,
    cancelled_by_caller,
    ended_early,
    interruption,
    protocol_violation,
)
from outrider_client._retry import Attempts
from outrider_client._retry_loop import retrying_async, task_is_cancelled
from outrider_client._statuses import from_rpc_error


class AsyncCall(Protocol):
    """A server-streaming call of the asyncio gRPC API."""

    async def read(self) -> object:
        """The next message, or `grpc.aio.EOF`."""
        ...

    def cancel(self) -> object:
        """Ends the call; harmless when it has ended."""
        ...


AsyncDial = Callable[[float | None, str], AsyncCall]
"""(seconds left or None, request id) to a call."""


class AsyncStream:
    """The chunks of a running generation. Leaving the block cancels what still runs.

    Entering waits until the server has taken the request, with retries; from then on nothing is
    retried. Iterating belongs to one task; `cancel` may be called from any of the same loop.

    ```python
    async with client.stream("def main(") as stream:
        async for chunk in stream:
            print(chunk.text, end="", flush=True)
    print(stream.final.finish_reason)
    ```
    """

    def __init__(
        self,
        dial: AsyncDial,
        attempts: Attempts,
        *,
        request_id: str | None,
        sleep: Callable[[float], Awaitable[None]],
    ) -> None:
        self._dial = dial
        self._attempts = attempts
        self._sleep = sleep
        self._request_id = request_id
        self._call: AsyncCall | None = None
        self._assembly = Assembly()
        self._cancelled = False
        self._closed = False

    async def __aenter__(self) -> AsyncStream:
        if self._call is not None or self._closed:
            raise RuntimeError("a stream can be entered only once")
        first = await retrying_async(
            self._first_message, self._attempts, request_id=self._request_id, sleep=self._sleep
        )
        try:
            self._request_id = self._assembly.start(first).request_id or self._request_id
        except ProtocolError as error:
            await self.close()
            raise protocol_violation(error, request_id=self._request_id or "") from None
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    def __aiter__(self) -> AsyncIterator[Chunk]:
        return self

    async def __anext__(self) -> Chunk:
        while (update := await self._next_update()) is not None:
            if isinstance(update, Chunk):
                return update
        raise StopAsyncIteration

    @property
    def updates(self) -> AsyncIterator[Chunk | BeamProgress]:
        """Iterates chunks, which are final, and looks at a beam search, which are not."""
        return self._updates()

    @property
    def started(self) -> Started:
        """What the server said first: seed, effective configuration, length of the prompt.

        Raises:
            RuntimeError: The stream was not entered.
        """
        if self._assembly.started is None:
            raise RuntimeError(NOT_ENTERED)
        return self._assembly.started

    @property
    def final(self) -> Completion:
        """The whole answer, once the stream has been iterated to its end.

        Raises:
            RuntimeError: It has not.
        """
        if self._assembly.final is None:
            raise RuntimeError(NOT_FINISHED)
        return self._assembly.final

    @property
    def partial(self) -> Completion | None:
        """What has arrived so far; None before the server took the request."""
        return self._assembly.partial()

    @property
    def text(self) -> AsyncIterator[str]:
        """Iterates the text of sequence 0 instead of chunks."""
        return self._texts()

    async def collect(self) -> Completion:
        """Reads the rest of the stream; returns the whole answer.

        Raises:
            OutriderError: The stream failed; `partial` of the error is what had arrived.
        """
        async for _ in self:
            pass
        return self.final

    def cancel(self) -> None:
        """Ends the generation at the server. Who iterates gets a RequestCancelledError."""
        self._cancelled = True
        if self._call is not None:
            self._call.cancel()

    async def close(self) -> None:
        """Cancels what still runs. Leaving the block does this."""
        self._closed = True
        if self._call is not None:  # dropping it would not end it: the server would go on sending
            self._call.cancel()

    async def _updates(self) -> AsyncIterator[Chunk | BeamProgress]:
        while (update := await self._next_update()) is not None:
            yield update

    async def _next_update(self) -> Chunk | BeamProgress | None:
        """What arrives next; None at the end."""
        call = self._call
        if call is None or (self._closed and self._assembly.final is None):
            raise RuntimeError(NOT_ENTERED)
        while (message := await self._read(call)) is not None:
            update = self._take(message)
            if update is not None:
                return update
        return None

    async def _texts(self) -> AsyncIterator[str]:
        async for chunk in self:
            if chunk.sequence_index == 0 and chunk.text:
                yield chunk.text

    async def _first_message(
        self, timeout: float | None, request_id: str
    ) -> generation_pb2.GenerateResponse:
        self._request_id = request_id
        if self._cancelled:  # while waiting for this try
            raise cancelled_by_caller(request_id)
        call = self._call = self._dial(timeout, request_id)
        try:
            message = await call.read()
        except grpc.RpcError:
            if self._cancelled:
                raise cancelled_by_caller(request_id) from None
            raise
        except asyncio.CancelledError:
            call.cancel()
            if task_is_cancelled():
                raise
            raise cancelled_by_caller(request_id) from None
        if not isinstance(message, generation_pb2.GenerateResponse):
            raise ended_early(request_id)
        return message

    async def _read(self, call: AsyncCall) -> generation_pb2.GenerateResponse | None:
        try:
            message = await call.read()
            if isinstance(message, generation_pb2.GenerateResponse):
                return message
            failure: OutriderError = ended_early(self._request_id or "")
        except grpc.RpcError as error:
            failure = from_rpc_error(error, request_id=self._request_id or "")
        except asyncio.CancelledError:
            if task_is_cancelled():
                raise
            failure = cancelled_by_caller(self._request_id or "")
        if self._assembly.final is not None:  # nothing is missing, however the call ended
            return None
        raise interruption(failure, self._assembly, cancelled=self._cancelled)

    def _take(self, message: generation_pb2.GenerateResponse) -> Chunk | BeamProgress | None:
        try:
            return self._assembly.take(message)
        except ProtocolError as error:
            violation = protocol_violation(error, request_id=self._request_id or "")
        self._closed = True
        if self._call is not None:
            self._call.cancel()
        raise interruption(violation, self._assembly, cancelled=False)
