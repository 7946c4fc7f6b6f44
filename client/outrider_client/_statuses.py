"""From a gRPC status to the exception a caller meets.

Reads the details of google.rpc (ErrorInfo, BadRequest, RetryInfo). Knows nothing of clients,
streams and retries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from outrider_contract.errors import DOMAIN, REQUEST_ID_KEY

from outrider_client._errors import (
    AlreadyExistsError,
    AuthenticationError,
    DeadlineExceededError,
    InvalidRequestError,
    NotFoundError,
    OutriderError,
    OverloadedError,
    PermissionDeniedError,
    RequestCancelledError,
    ServerError,
    UnavailableError,
)

_CLASSES: dict[grpc.StatusCode, Callable[..., OutriderError]] = {
    grpc.StatusCode.NOT_FOUND: NotFoundError,
    grpc.StatusCode.ALREADY_EXISTS: AlreadyExistsError,
    grpc.StatusCode.UNAUTHENTICATED: AuthenticationError,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDeniedError,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceededError,
    grpc.StatusCode.UNAVAILABLE: UnavailableError,
    grpc.StatusCode.CANCELLED: RequestCancelledError,
}
_INVALID = (
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.OUT_OF_RANGE,
)


class _Details(NamedTuple):
    """What the details of a status say."""

    reason: str = ""
    request_id: str = ""
    field: str = ""
    retry_after: float | None = None


def from_rpc_error(error: grpc.RpcError, *, request_id: str) -> OutriderError:
    """The exception for a failed call, which becomes its cause.

    Args:
        error: What the stub raised, of the synchronous or the asyncio API.
        request_id: The id that was sent; the server's own word on it wins.
    """
    failure = _failure(error, _details(error), request_id)
    failure.__cause__ = error
    return failure


def _failure(error: grpc.RpcError, details: _Details, request_id: str) -> OutriderError:
    code = error.code()
    message = error.details() or f"the call ended with {code.name}"
    request_id = details.request_id or request_id
    if code in _INVALID:
        return InvalidRequestError(
            message,
            field=details.field,
            code=code,
            request_id=request_id,
            reason=details.reason,
        )
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return OverloadedError(
            message,
            retry_after=details.retry_after,
            request_id=request_id,
            reason=details.reason,
        )
    # Whatever else (INTERNAL, UNKNOWN, UNIMPLEMENTED, DATA_LOSS, ABORTED) is the server's doing.
    cls = _CLASSES.get(code, ServerError)
    return cls(message, code=code, request_id=request_id, reason=details.reason)


def _details(error: grpc.RpcError) -> _Details:
    try:
        status = rpc_status.from_call(error)
        return _Details() if status is None else _read(status.details)
    except (ValueError, DecodeError):  # contradict the status, or are no details: not ours
        return _Details()


def _read(details: Iterable[Any]) -> _Details:
    found = _Details()
    for packed in details:
        if packed.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            info = error_details_pb2.ErrorInfo()
            packed.Unpack(info)
            if info.domain == DOMAIN:
                name = info.metadata.get(REQUEST_ID_KEY, "")
                found = found._replace(reason=info.reason, request_id=name)
        elif packed.Is(error_details_pb2.BadRequest.DESCRIPTOR):
            request = error_details_pb2.BadRequest()
            packed.Unpack(request)
            if request.field_violations:
                found = found._replace(field=request.field_violations[0].field)
        elif packed.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
            retry = error_details_pb2.RetryInfo()
            packed.Unpack(retry)
            delay = retry.retry_delay
            found = found._replace(retry_after=delay.seconds + delay.nanos / 1e9)
    return found
