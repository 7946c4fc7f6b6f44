"""Calls that must fail, and how: the status, the machine-readable reason, the field at fault."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from outrider.v1 import generation_pb2 as pb
from outrider_contract.errors import DOMAIN, FIELD_KEY, REQUEST_ID_KEY, Reason
from service.harness import Caller

LONGEST_MESSAGE = 1000
"""Characters of an error: it must fit into metadata with room to spare, whatever was sent."""


class Refusal(NamedTuple):
    """A failed call."""

    code: grpc.StatusCode
    message: str
    reason: str
    field: str
    request_id: str
    retry_after: float | None


def refusal(call: Callable[[], Any]) -> Refusal:
    """Make a call that must fail; gives what it failed with.

    Its details must agree with each other and be for people and programs alike.
    """
    with pytest.raises(grpc.RpcError) as caught:
        call()
    error: Any = caught.value
    status = rpc_status.from_call(error)
    if status is None:  # from gRPC itself, not from the service
        return Refusal(error.code(), error.details(), "", "", "", None)
    info, bad_request, retry = (
        error_details_pb2.ErrorInfo(),
        error_details_pb2.BadRequest(),
        error_details_pb2.RetryInfo(),
    )
    for packed in status.details:
        for message in (info, bad_request, retry):
            packed.Unpack(message)
    assert info.domain == DOMAIN
    assert info.reason in set(Reason)
    field = info.metadata.get(FIELD_KEY, "")
    assert [violation.field for violation in bad_request.field_violations] == [field] * bool(field)
    assert status.message == error.details()
    assert "\n" not in status.message
    assert len(status.message) <= LONGEST_MESSAGE
    if field:
        assert status.message.startswith(field), "people are told the field as well"
    delay = retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9
    return Refusal(
        error.code(),
        status.message,
        info.reason,
        field,
        info.metadata.get(REQUEST_ID_KEY, ""),
        delay or None,
    )


def refused(caller: Caller, request: pb.GenerateRequest) -> Refusal:
    """What a `Generate` call is refused with; nothing may come before."""
    return refusal(lambda: next(caller.open(request)))
