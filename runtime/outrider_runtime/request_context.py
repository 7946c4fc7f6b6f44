"""Who is calling: the caller, the request id and the trace of the call that the task serves.

Kept in context variables, which asyncio tasks inherit and the engine's thread does not: what
crosses over takes the id along. Knows nothing of gRPC but the keys of its metadata.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterable, Mapping
from contextvars import ContextVar

from outrider_contract.metadata import REQUEST_ID, TRACEPARENT, is_request_id

_REQUEST_ID: ContextVar[str] = ContextVar("outrider_request_id")
_CALLER: ContextVar[str] = ContextVar("outrider_caller", default="")
_ACCOUNT: ContextVar[str] = ContextVar("outrider_account", default="")
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}")


def current_request_id() -> str | None:
    """Id of the request that the current task serves; None outside of one."""
    return _REQUEST_ID.get(None)


def set_request_id(request_id: str) -> None:
    """Names the request of the current task and of those it starts."""
    _REQUEST_ID.set(request_id)


def current_caller() -> str:
    """Name of who called: of the key, else of the certificate. Empty: it could be anybody."""
    return _CALLER.get()


def current_account() -> str:
    """Under which name a caller's limits are kept: its own, else where it calls from."""
    return _ACCOUNT.get()


def set_caller(caller: str, *, address: str) -> None:
    """Names who called what the current task serves, and the tasks it starts."""
    _CALLER.set(caller)
    _ACCOUNT.set(caller or address)


def choose_request_id(request: object, metadata: Mapping[str, str]) -> str:
    """The id a call goes by.

    In this order: the message's own `request_id`, the caller's metadata, a new one. An id that is
    not printable ASCII of at most 128 characters is passed over; refusing it is up to what
    validates the message.
    """
    own = getattr(request, "request_id", None)  # few messages have one
    for given in (own, metadata.get(REQUEST_ID)):
        if isinstance(given, str) and is_request_id(given):
            return given
    return str(uuid.uuid4())


def is_traceparent(text: str) -> bool:
    """Whether a text is a W3C traceparent."""
    return _TRACEPARENT.fullmatch(text) is not None


def trace_of(metadata: Mapping[str, str]) -> dict[str, str]:
    """`trace_id` and `parent_span_id` of a valid W3C traceparent, for the log; else empty."""
    match = _TRACEPARENT.fullmatch(metadata.get(TRACEPARENT, ""))
    return {"trace_id": match[1], "parent_span_id": match[2]} if match else {}


def text_metadata(pairs: Iterable[tuple[str, str | bytes]] | None) -> dict[str, str]:
    """Metadata without its binary entries; of equal keys the first."""
    found: dict[str, str] = {}
    for key, value in pairs or ():
        if isinstance(value, str):
            found.setdefault(key, value)
    return found
