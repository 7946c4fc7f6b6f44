"""Keys of gRPC metadata, and what may stand under them. Knows nothing of calls or servers."""

from __future__ import annotations

REQUEST_ID = "x-request-id"
"""Names a request; sent by the client, returned as initial metadata."""

AUTHORIZATION = "authorization"
"""Carries the API key as `Bearer KEY`."""

BEARER_PREFIX = "Bearer "
"""What precedes the key under `authorization`."""

TRACEPARENT = "traceparent"
"""W3C trace context of the caller."""

MAX_REQUEST_ID_LENGTH = 128
"""Longest request id, in characters."""


def is_request_id(text: str) -> bool:
    """Whether `text` may name a request: 1 to 128 printable ASCII characters.

    Anything else is refused or replaced, so that an id can be put into logs and metadata as it is.
    """
    return 0 < len(text) <= MAX_REQUEST_ID_LENGTH and text.isascii() and text.isprintable()
