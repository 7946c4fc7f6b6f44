"""What a failure in the middle of a stream becomes: an error that keeps what had arrived.

Knows nothing of calls: both kinds of stream ask it.
"""

from __future__ import annotations

import grpc

from outrider_client._assembly import Assembly, ProtocolError
from outrider_client._errors import (
    DeadlineExceededError,
    OutriderError,
    RequestCancelledError,
    ServerError,
    StreamInterruptedError,
)

NOT_ENTERED = "the stream is not open: use `with client.stream(...) as stream:` (or `async with`)"
NOT_FINISHED = (
    "the stream has not ended: iterate it to its end or call `collect()`; `partial` is what has "
    "arrived so far"
)


def interruption(error: OutriderError, assembly: Assembly, *, cancelled: bool) -> OutriderError:
    """The error for a stream that failed after its first message.

    Args:
        error: What the status would be before the first message.
        assembly: What had arrived.
        cancelled: Whether the caller cancelled the stream.

    Returns:
        With `partial` set: `error` itself when the caller's own timeout or cancellation ended the
        stream, else a StreamInterruptedError caused by it.
    """
    own = isinstance(error, DeadlineExceededError) or (
        cancelled and isinstance(error, RequestCancelledError)
    )
    if own:
        error.partial = assembly.partial()
        return error
    interrupted = StreamInterruptedError(
        f"the stream broke off: {error.message}",
        code=error.code,
        request_id=error.request_id,
        reason=error.reason,
        partial=assembly.partial(),
    )
    interrupted.__cause__ = error
    return interrupted


def protocol_violation(error: ProtocolError, *, request_id: str) -> ServerError:
    """The error for messages that do not follow the contract."""
    return ServerError(
        f"the server broke the contract: {error}",
        code=grpc.StatusCode.INTERNAL,
        request_id=request_id,
    )


def cancelled_by_caller(request_id: str) -> RequestCancelledError:
    """The error for a stream that the caller cancelled before its first message."""
    return RequestCancelledError(
        "the stream was cancelled", code=grpc.StatusCode.CANCELLED, request_id=request_id
    )


def ended_early(request_id: str) -> ServerError:
    """The error for a stream that ends without its last message."""
    return protocol_violation(
        ProtocolError("the stream ended without its last message"), request_id=request_id
    )
