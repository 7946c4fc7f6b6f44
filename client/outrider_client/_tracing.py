"""Calls as spans of the application's own traces, where it traces at all.

An application that traces has imported OpenTelemetry and set up a provider; then each call is a
client span of the current trace, and its context travels along, so that the services' spans join.
Where it has not, nothing is imported and nothing is sent. Knows nothing of what is called.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import grpc

if TYPE_CHECKING:
    from opentelemetry.trace import Span

_SERVICE = "outrider.v1.GenerationService"

Metadata = tuple[tuple[str, str], ...]


class CallSpan:
    """The span of one try of a call, or nothing."""

    __slots__ = ("_asking", "_span", "metadata")

    def __init__(self, method: str, request_id: str) -> None:
        """Begins it.

        Args:
            method: Name of the method, such as Generate.
            request_id: Name of the request.
        """
        self.metadata: Metadata = ()
        """What the call carries along for the service to go on with."""
        self._span: Span | None = None
        self._asking: asyncio.Task[None] | None = None
        if "opentelemetry.trace" not in sys.modules:
            return
        from opentelemetry import propagate, trace

        span = trace.get_tracer("outrider_client").start_span(
            f"{_SERVICE}/{method}",
            kind=trace.SpanKind.CLIENT,
            attributes={
                "rpc.system": "grpc",
                "rpc.service": _SERVICE,
                "rpc.method": method,
                "outrider.request_id": request_id,
            },
        )
        # Without a span of its own the application's current one is passed on all the same.
        context = trace.set_span_in_context(span)
        carrier: dict[str, str] = {}
        propagate.inject(carrier, context)
        self.metadata = tuple((key.lower(), value) for key, value in carrier.items())
        if span.is_recording():
            self._span = span

    def over(self, call: Any) -> None:
        """Have it end with a streaming call of the synchronous API."""
        if self._span is not None and not call.add_callback(lambda: self.end(call.code())):
            self.end(call.code())

    def over_async(self, call: Any) -> None:
        """Have it end with a streaming call of the asyncio API."""
        if self._span is not None:
            call.add_done_callback(self._ask_for_code)

    def _ask_for_code(self, call: Any) -> None:
        # Though the call is over, its code has to be awaited.
        self._asking = asyncio.get_running_loop().create_task(self._end_as(call))

    async def _end_as(self, call: Any) -> None:
        self.end(await call.code())

    def end(self, code: grpc.StatusCode | None) -> None:
        """Ends it; None: it is not known how the call ended."""
        span, self._span = self._span, None
        if span is None:
            return
        from opentelemetry.trace import StatusCode

        if code is not None:
            span.set_attribute("rpc.grpc.status_code", code.value[0])
            if code not in (grpc.StatusCode.OK, grpc.StatusCode.CANCELLED):
                span.set_status(StatusCode.ERROR, code.name)
        span.end()


@contextmanager
def call_span(request: object, request_id: str) -> Iterator[CallSpan]:
    """The span of a call that is waited for in the block; its method is its request's."""
    span = CallSpan(type(request).__name__.removesuffix("Request"), request_id)
    code: grpc.StatusCode | None = None
    try:
        yield span
        code = grpc.StatusCode.OK
    except grpc.RpcError as error:
        code = error.code() if isinstance(error, grpc.Call | grpc.aio.AioRpcError) else None
        raise
    finally:
        span.end(code)
