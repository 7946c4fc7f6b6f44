"""The exceptions a caller meets, one class per thing a caller can do about it.

Knows nothing of wires and statuses but their codes; `_statuses` turns a status into one of these.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc

if TYPE_CHECKING:
    from outrider_client._completion import Completion


class OutriderError(Exception):
    """A request that did not succeed.

    Attributes:
        message: What is wrong and what to change, one sentence for people.
        code: The gRPC status code.
        request_id: Name of the request, to look up at the server; empty when none was sent.
        reason: Machine-readable reason, a value of `outrider_contract.errors.Reason`; empty when
            the server gave none.
        partial: What had arrived when a stream failed; None when nothing had.
    """

    def __init__(
        self,
        message: str,
        *,
        code: grpc.StatusCode = grpc.StatusCode.UNKNOWN,
        request_id: str = "",
        reason: str = "",
        partial: Completion | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.request_id = request_id
        self.reason = reason
        self.partial = partial

    def __str__(self) -> str:
        return f"{self.message} (request {self.request_id})" if self.request_id else self.message

    @property
    def retryable(self) -> bool:
        """Whether the same request may succeed when sent again."""
        return False


class InvalidRequestError(OutriderError, ValueError):
    """The request is wrong: sending it again will not help.

    The same class whether this library or the server found it, so it is a `ValueError` too.

    Attributes:
        field: The field or argument at fault, such as "top_p"; from the server its path in the
            request, such as "generation_config.top_p". Empty when none is to blame alone.
    """

    def __init__(
        self,
        message: str,
        *,
        field: str = "",
        code: grpc.StatusCode = grpc.StatusCode.INVALID_ARGUMENT,
        request_id: str = "",
        reason: str = "",
        partial: Completion | None = None,
    ) -> None:
        super().__init__(message, code=code, request_id=request_id, reason=reason, partial=partial)
        self.field = field


class NotFoundError(OutriderError):
    """What the request names does not exist at the server."""


class AlreadyExistsError(OutriderError):
    """A request of the same id is running."""


class AuthenticationError(OutriderError):
    """The API key is missing or wrong."""


class PermissionDeniedError(OutriderError):
    """The caller is known and may not do this."""


class OverloadedError(OutriderError):
    """The server, or a limit of it, is full.

    Attributes:
        retry_after: Seconds after which the server wants to be asked again; None when it did not
            say, which means that asking again will not help.
    """

    def __init__(
        self,
        message: str,
        *,
        retry_after: float | None = None,
        code: grpc.StatusCode = grpc.StatusCode.RESOURCE_EXHAUSTED,
        request_id: str = "",
        reason: str = "",
        partial: Completion | None = None,
    ) -> None:
        super().__init__(message, code=code, request_id=request_id, reason=reason, partial=partial)
        self.retry_after = retry_after

    @property
    def retryable(self) -> bool:
        """True when the server said when to come back."""
        return self.retry_after is not None


class DeadlineExceededError(OutriderError):
    """The timeout passed before the answer was complete."""


class UnavailableError(OutriderError):
    """The server cannot be reached, or is shutting down."""

    @property
    def retryable(self) -> bool:
        """True: another try may reach it."""
        return True


class RequestCancelledError(OutriderError):
    """The call was cancelled: by `stream.cancel()`, or by a server that did not start on it.

    Not `asyncio.CancelledError`, which is about tasks and passes through untouched.
    """


class ServerError(OutriderError):
    """Something broke at the server; `request_id` finds it in its log."""


class StreamInterruptedError(OutriderError):
    """The stream broke after its first message; `partial` holds what had arrived.

    Never retried by the client: tokens were already given out. `__cause__` is the error that
    the same status would have been before the first message.
    """

    @property
    def retryable(self) -> bool:
        """True when the connection broke rather than the request."""
        return self.code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
