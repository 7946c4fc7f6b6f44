"""What traces need of whoever records them: spans of calls and sessions, and their parts.

A port: `otel` is behind it where the extra `tracing` is installed and an endpoint is named; else
there is no tracer, and a call costs one comparison more. Knows nothing of OpenTelemetry.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from outrider_runtime.errors import StartupError

if TYPE_CHECKING:
    from outrider_runtime.otel import OtelTracer

Attributes = Mapping[str, str | int | float | bool]


class Span(Protocol):
    """A recorded stretch of time that has not ended yet."""

    @property
    def traceparent(self) -> str:
        """W3C trace context of this span, for what is called from within it."""
        ...

    @property
    def trace_id(self) -> str:
        """32 hexadecimal digits."""
        ...

    def part(self, name: str, began: float, ended: float, attributes: Attributes) -> Span:
        """Record something within that is over. Times are of `time.monotonic()`."""
        ...

    def end(self, attributes: Attributes, *, fault: str | None = None) -> None:
        """End it. `fault` says that, and how, it went wrong."""
        ...


class Tracer(Protocol):
    """Decides what is recorded, and records it."""

    def begin_call(self, method: str, metadata: Mapping[str, str], request_id: str) -> Span | None:
        """A call that arrives, under its caller's trace if that names one; None: not recorded."""
        ...

    def begin_session(self, traceparent: str, attributes: Attributes) -> Span | None:
        """A session under a target's request; None: that is not recorded."""
        ...

    def close(self) -> None:
        """Send what was recorded; blocks for some seconds at most."""
        ...


_SPAN: ContextVar[Span | None] = ContextVar("outrider_span", default=None)


def current_span() -> Span | None:
    """Span of the call that the current task serves; None when it is not recorded."""
    return _SPAN.get()


def set_span(span: Span | None) -> None:
    """Says which span the current task, and those it starts, are part of."""
    _SPAN.set(span)


@dataclass(frozen=True, slots=True)
class TracingSettings:
    """Where spans go, and of how many requests."""

    otlp_traces_endpoint: str | None = None
    """Where a collector takes OTLP over gRPC, http://HOST:PORT or https://HOST:PORT; None: nothing
    is recorded."""
    trace_sample_ratio: float = 1.0
    """Share of the calls without a trace of their own that are recorded, 0 to 1."""


def open_tracer(service: str, settings: TracingSettings) -> OtelTracer | None:
    """What records a service's spans and sends them to a collector; None: nothing does.

    Args:
        service: Name of the service in traces.
        settings: Where they go.

    Raises:
        StartupError: The extra is not installed, or the endpoint is none.
    """
    endpoint = settings.otlp_traces_endpoint
    if endpoint is None:
        return None
    if not endpoint.startswith(("http://", "https://")):
        raise StartupError(
            f"--otlp-traces-endpoint {endpoint}: must be http://HOST:PORT or https://HOST:PORT"
        )
    try:
        from outrider_runtime import otel
    except ImportError:
        raise StartupError(
            "--otlp-traces-endpoint needs the extra: pip install 'outrider[tracing]'"
        ) from None
    return otel.tracer_to(service, endpoint, settings.trace_sample_ratio)
