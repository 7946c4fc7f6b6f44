"""Errors that a service shows its callers: each class carries its status code, reason and action.

Anything else that escapes a handler is a bug and becomes `InternalError` in the interceptor. Knows
nothing of calls: turning an error into the end of a call is the interceptor's work.
"""

from __future__ import annotations

import math
from typing import ClassVar

import grpc
from google.rpc import (
    error_details_pb2,
    status_pb2,
)
from outrider_contract.errors import DOMAIN, FIELD_KEY, REQUEST_ID_KEY, Reason

_LONGEST_MESSAGE = 300
"""Characters of an error. It crosses the wire as metadata, which is limited, and twice more in the
details; what it quotes may come from a caller and be of any length."""


class StartupError(Exception):
    """A service cannot start. Its text is one clear line that says what to change."""

    def __init__(self, text: str) -> None:
        super().__init__(" ".join(text.split()))


class OutriderError(Exception):
    """An error with a place in the contract.

    Attributes:
        code: Status code of the call.
        reason: What programs branch on.
        message: What people read; nothing internal.
        field: Path of the request field at fault, if one is.
        retry_after: Seconds after which a retry makes sense, if one does.
    """

    code: ClassVar[grpc.StatusCode] = grpc.StatusCode.INTERNAL
    reason: Reason = Reason.INTERNAL

    def __init__(
        self,
        message: str,
        *,
        reason: Reason | None = None,
        field: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        message = _one_short_line(message)
        super().__init__(message)
        self.message = message
        self.reason = reason or type(self).reason
        self.field = field
        self.retry_after = retry_after

    def to_status(self, *, request_id: str | None = None) -> status_pb2.Status:
        """The rich form: ErrorInfo, BadRequest if a field is at fault, RetryInfo if to retry."""
        status = status_pb2.Status(code=self.code.value[0], message=self.message)
        info = error_details_pb2.ErrorInfo(reason=self.reason, domain=DOMAIN)
        if self.field is not None:
            info.metadata[FIELD_KEY] = self.field
        if request_id is not None:
            info.metadata[REQUEST_ID_KEY] = request_id
        status.details.add().Pack(info)
        if self.field is not None:
            violation = error_details_pb2.BadRequest.FieldViolation(
                field=self.field, description=self.message
            )
            status.details.add().Pack(error_details_pb2.BadRequest(field_violations=[violation]))
        if self.retry_after is not None:
            retry = error_details_pb2.RetryInfo()
            seconds = math.floor(self.retry_after)
            retry.retry_delay.seconds = seconds
            retry.retry_delay.nanos = int((self.retry_after - seconds) * 1e9)
            status.details.add().Pack(retry)
        return status


def _one_short_line(text: str) -> str:
    line = " ".join(text[: 2 * _LONGEST_MESSAGE].split())
    return line if len(line) <= _LONGEST_MESSAGE else f"{line[: _LONGEST_MESSAGE - 3]}..."


class InvalidRequest(OutriderError):
    """A field has a value that is never valid. `field` may be empty when no field can be named."""

    code = grpc.StatusCode.INVALID_ARGUMENT
    reason = Reason.INVALID_FIELD

    def __init__(self, field: str, why: str, *, reason: Reason | None = None) -> None:
        super().__init__(f"{field}: {why}" if field else why, reason=reason, field=field or None)
        self.why = why


class UnsupportedOption(InvalidRequest):
    """A field asks for something that this server does not do."""

    reason = Reason.UNSUPPORTED_FIELD


class DuplicateRequest(OutriderError):
    """A running request has the same id."""

    code = grpc.StatusCode.ALREADY_EXISTS
    reason = Reason.DUPLICATE_REQUEST

    def __init__(self, request_id: str) -> None:
        super().__init__(
            f"request {request_id!r} is already running; ids must be unique among running requests"
        )


class Overloaded(OutriderError):
    """The queue is full."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    reason = Reason.OVERLOADED

    def __init__(
        self, retry_after: float, message: str = "too many requests are waiting; retry later"
    ) -> None:
        super().__init__(message, retry_after=retry_after)


class TooManyStreams(OutriderError):
    """The caller has as many streams open as it may."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    reason = Reason.TOO_MANY_STREAMS

    def __init__(self, most: int) -> None:
        super().__init__(
            f"this caller has {most} open streams and may not have more; retry when one has ended",
            retry_after=1.0,
        )


class TokenQuotaExceeded(OutriderError):
    """The caller has had its tokens for now."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    reason = Reason.TOKEN_QUOTA_EXCEEDED

    def __init__(self, per_minute: int, retry_after: float) -> None:
        super().__init__(
            f"this caller may have {per_minute} tokens a minute, prompts and answers together; "
            f"retry in {retry_after:g} s",
            retry_after=retry_after,
        )


class Draining(OutriderError):
    """The server is going away."""

    code = grpc.StatusCode.UNAVAILABLE
    reason = Reason.DRAINING

    def __init__(
        self, message: str = "the server is shutting down and takes no new requests"
    ) -> None:
        super().__init__(message)


class RequestAborted(OutriderError):
    """The request was ended before there was an answer."""

    code = grpc.StatusCode.CANCELLED
    reason = Reason.ABORTED

    def __init__(self, request_id: str) -> None:
        super().__init__(f"request {request_id!r} was aborted, or ran out of time")


class PreconditionFailed(OutriderError):
    """The two sides do not fit: protocol version, tokenizer, state."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = Reason.PRECONDITION_FAILED


class Unauthenticated(OutriderError):
    """The API key is missing or wrong."""

    code = grpc.StatusCode.UNAUTHENTICATED
    reason = Reason.UNAUTHENTICATED

    def __init__(
        self, message: str = "missing or wrong API key; send metadata 'authorization: Bearer KEY'"
    ) -> None:
        super().__init__(message)


class InternalError(OutriderError):
    """A bug. Says nothing but the id under which the log has the rest."""

    def __init__(self, request_id: str) -> None:
        super().__init__(f"internal error; the server's log has it under request id {request_id}")


class PluginFailed(OutriderError):
    """Code that the operator installed raised an error; the log has it."""

    def __init__(self, name: str) -> None:
        super().__init__(f"the server's plug-in {name!r} failed")
