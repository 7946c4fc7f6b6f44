"""Names of errors on the wire: the domain and the reasons that google.rpc.ErrorInfo carries.

Knows nothing of exceptions: the service's are in `outrider_runtime.errors`, the client's in the
client.
"""

from __future__ import annotations

from enum import StrEnum, unique

DOMAIN = "outrider"
"""`ErrorInfo.domain` of every error of ours."""

FIELD_KEY = "field"
"""Key in `ErrorInfo.metadata` of the field at fault."""

REQUEST_ID_KEY = "request_id"
"""Key in `ErrorInfo.metadata` of the request's id."""


@unique
class Reason(StrEnum):
    """`ErrorInfo.reason`: what went wrong, for programs."""

    INVALID_FIELD = "INVALID_FIELD"
    """A field has a value that is never valid. INVALID_ARGUMENT."""

    UNSUPPORTED_FIELD = "UNSUPPORTED_FIELD"
    """A field asks for something this server does not do. INVALID_ARGUMENT."""

    MALFORMED_MESSAGE = "MALFORMED_MESSAGE"
    """The bytes are not a message of the contract. INVALID_ARGUMENT."""

    EMPTY_PROMPT = "EMPTY_PROMPT"
    """The prompt has no tokens. INVALID_ARGUMENT."""

    PROMPT_TOO_LONG = "PROMPT_TOO_LONG"
    """Prompt plus output do not fit the model. INVALID_ARGUMENT."""

    DUPLICATE_REQUEST = "DUPLICATE_REQUEST"
    """A running request has the same id. ALREADY_EXISTS."""

    OVERLOADED = "OVERLOADED"
    """Too many requests wait; RetryInfo says when to come back. RESOURCE_EXHAUSTED."""

    TOO_MANY_STREAMS = "TOO_MANY_STREAMS"
    """The caller has as many streams open as it may; RetryInfo as above. RESOURCE_EXHAUSTED."""

    TOKEN_QUOTA_EXCEEDED = "TOKEN_QUOTA_EXCEEDED"
    """The caller has had its tokens for now; RetryInfo as above. RESOURCE_EXHAUSTED."""

    DRAINING = "DRAINING"
    """The server is going away and takes nothing new. UNAVAILABLE."""

    ABORTED = "ABORTED"
    """`Abort`, or its time limit, ended the request before there was an answer. CANCELLED."""

    UNAUTHENTICATED = "UNAUTHENTICATED"
    """The API key is missing or wrong. UNAUTHENTICATED."""

    PRECONDITION_FAILED = "PRECONDITION_FAILED"
    """The server is not in a state that allows the call. FAILED_PRECONDITION."""

    PROTOCOL_MISMATCH = "PROTOCOL_MISMATCH"
    """The two ends of a draft link speak different versions. FAILED_PRECONDITION."""

    TOKENIZER_MISMATCH = "TOKENIZER_MISMATCH"
    """The two ends of a draft link have different tokenizers. FAILED_PRECONDITION."""

    INTERNAL = "INTERNAL"
    """A bug; the request id finds it in the server's log. INTERNAL."""
