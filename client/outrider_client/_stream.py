"""A running generation, for threads: a context manager that owns the call.

Knows nothing of how a call is made: the client hands in what does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
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
from outrider_client._retry_loop import retrying
from outrider_client._statuses import from_rpc_error


class Call(Protocol):
    """A server-streaming call of the synchronous gRPC API."""

    def __next__(self) -> generation_pb2.GenerateResponse:
        """The next message, waited for."""
        ...

    def cancel(self) -> object:
        """Ends the call; harmless when it has ended."""
        ...


Dial = Callable[[float | None, str], Call]
"""(seconds left or None, request id) to a call."""


class Stream:
    """The chunks of a running generation. Leaving the `with` block cancels what still runs.

    Entering waits until the server has taken the request, with retries; from then on nothing is
    retried. Iterating belongs to one thread; `cancel` may be called from any.

    ```python
    with client.stream("def main(") as stream:
        for chunk in stream:
            print(chunk.text, end="", flush=True)
    print(stream.final.finish_reason)
    ```
    """

    def __init__(
        self,
        dial: Dial,
        attempts: Attempts,
        *,
        request_id: str | None,
        sleep: Callable[[float], None],
    ) -> None:
        self._dial = dial
        self._attempts = attempts
        self._sleep = sleep
        self._request_id = request_id
        self._call: Call | None = None
        self._assembly = Assembly()
        self._cancelled = False
        self._closed = False

    def __enter__(self) -> Stream:
        if self._call is not None or self._closed:
            raise RuntimeError("a stream can be entered only once")
        first = retrying(
            self._first_message, self._attempts, request_id=self._request_id, sleep=self._sleep
        )
        try:
            self._request_id = self._assembly.start(first).request_id or self._request_id
        except ProtocolError as error:
            self.close()
            raise protocol_violation(error, request_id=self._request_id or "") from None
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __iter__(self) -> Iterator[Chunk]:
        return self

    def __next__(self) -> Chunk:
        while (update := self._next_update()) is not None:
            if isinstance(update, Chunk):
                return update
        raise StopIteration

    @property
    def updates(self) -> Iterator[Chunk | BeamProgress]:
        """Iterates chunks, which are final, and looks at a beam search, which are not."""
        return iter(self._next_update, None)

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
    def text(self) -> Iterator[str]:
        """Iterates the text of sequence 0 instead of chunks."""
        return (chunk.text for chunk in self if chunk.sequence_index == 0 and chunk.text)

    def collect(self) -> Completion:
        """Reads the rest of the stream; returns the whole answer.

        Raises:
            OutriderError: The stream failed; `partial` of the error is what had arrived.
        """
        for _ in self:
            pass
        return self.final

    def cancel(self) -> None:
        """Ends the generation at the server. Who iterates gets a RequestCancelledError."""
        self._cancelled = True
        if self._call is not None:
            self._call.cancel()

    def close(self) -> None:
        """Cancels what still runs. Leaving the block does this."""
        self._closed = True
        if self._call is not None:
            self._call.cancel()

    def _first_message(
        self, timeout: float | None, request_id: str
    ) -> generation_pb2.GenerateResponse:
        self._request_id = request_id
        if self._cancelled:  # while waiting for this try
            raise cancelled_by_caller(request_id)
        call = self._call = self._dial(timeout, request_id)
        if self._cancelled:  # by another thread, before there was a call to cancel
            call.cancel()
        try:
            return next(call)
        except StopIteration:
            raise ended_early(request_id) from None
        except grpc.RpcError:
            if self._cancelled:
                raise cancelled_by_caller(request_id) from None
            raise
        except BaseException:  # Ctrl-C while waiting: nobody else will end the call
            call.cancel()
            raise

    def _next_update(self) -> Chunk | BeamProgress | None:
        """What arrives next; None at the end."""
        call = self._call
        if call is None or (self._closed and self._assembly.final is None):
            raise RuntimeError(NOT_ENTERED)
        while (message := self._read(call)) is not None:
            update = self._take(message)
            if update is not None:
                return update
        return None

    def _read(self, call: Call) -> generation_pb2.GenerateResponse | None:
        try:
            return next(call)
        except StopIteration:
            failure: OutriderError = ended_early(self._request_id or "")
        except grpc.RpcError as error:
            failure = from_rpc_error(error, request_id=self._request_id or "")
        if self._assembly.final is not None:  # nothing is missing, however the call ended
            return None
        raise interruption(failure, self._assembly, cancelled=self._cancelled)

    def _take(self, message: generation_pb2.GenerateResponse) -> Chunk | BeamProgress | None:
        try:
            return self._assembly.take(message)
        except ProtocolError as error:
            violation = protocol_violation(error, request_id=self._request_id or "")
        self.close()
        raise interruption(violation, self._assembly, cancelled=False)
