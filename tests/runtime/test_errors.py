"""Each error carries its status; what people read is what programs can take apart."""

from __future__ import annotations

import grpc
import pytest
from google.rpc import error_details_pb2
from outrider_contract.errors import DOMAIN, Reason
from outrider_runtime.errors import (
    Draining,
    DuplicateRequest,
    InternalError,
    InvalidRequest,
    OutriderError,
    Overloaded,
    PreconditionFailed,
    StartupError,
    TokenQuotaExceeded,
    TooManyStreams,
    Unauthenticated,
    UnsupportedOption,
)


@pytest.mark.parametrize(
    ("error", "code", "reason"),
    [
        (InvalidRequest("top_k", "x"), grpc.StatusCode.INVALID_ARGUMENT, Reason.INVALID_FIELD),
        (
            InvalidRequest("prompt", "x", reason=Reason.EMPTY_PROMPT),
            grpc.StatusCode.INVALID_ARGUMENT,
            Reason.EMPTY_PROMPT,
        ),
        (
            UnsupportedOption("num_beams", "x"),
            grpc.StatusCode.INVALID_ARGUMENT,
            Reason.UNSUPPORTED_FIELD,
        ),
        (DuplicateRequest("r"), grpc.StatusCode.ALREADY_EXISTS, Reason.DUPLICATE_REQUEST),
        (Overloaded(1.0), grpc.StatusCode.RESOURCE_EXHAUSTED, Reason.OVERLOADED),
        (TooManyStreams(3), grpc.StatusCode.RESOURCE_EXHAUSTED, Reason.TOO_MANY_STREAMS),
        (
            TokenQuotaExceeded(100, 1.5),
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            Reason.TOKEN_QUOTA_EXCEEDED,
        ),
        (Draining(), grpc.StatusCode.UNAVAILABLE, Reason.DRAINING),
        (
            PreconditionFailed("x", reason=Reason.TOKENIZER_MISMATCH),
            grpc.StatusCode.FAILED_PRECONDITION,
            Reason.TOKENIZER_MISMATCH,
        ),
        (Unauthenticated(), grpc.StatusCode.UNAUTHENTICATED, Reason.UNAUTHENTICATED),
        (InternalError("r"), grpc.StatusCode.INTERNAL, Reason.INTERNAL),
    ],
)
def test_the_status_carries_code_message_and_reason(
    error: OutriderError, code: grpc.StatusCode, reason: Reason
) -> None:
    status = error.to_status(request_id="r-1")
    assert (status.code, status.message) == (code.value[0], str(error))
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert (info.domain, info.reason) == (DOMAIN, reason)
    assert info.metadata["request_id"] == "r-1"


def test_only_errors_of_a_field_name_one() -> None:
    violation = error_details_pb2.BadRequest()
    named = InvalidRequest("top_k", "must be positive").to_status()
    assert named.details[1].Unpack(violation)
    assert violation.field_violations[0].field == "top_k"
    assert named.message == "top_k: must be positive"
    assert len(InvalidRequest("", "not a message").to_status().details) == 1


@pytest.mark.parametrize("seconds", [0.0, 0.25, 3.5])
def test_only_errors_worth_a_retry_say_when(seconds: float) -> None:
    retry = error_details_pb2.RetryInfo()
    assert Overloaded(seconds).to_status().details[1].Unpack(retry)
    assert retry.retry_delay.ToTimedelta().total_seconds() == seconds
    assert len(Draining().to_status().details) == 1


def test_an_internal_error_tells_the_id_and_nothing_else() -> None:
    error = InternalError("r-1")
    assert "r-1" in error.message


def test_a_startup_error_is_one_line_whatever_went_into_it() -> None:
    assert str(StartupError("a\n  b\r\nc")) == "a b c"
