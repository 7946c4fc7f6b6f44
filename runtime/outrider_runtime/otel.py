"""Spans by OpenTelemetry. Needs the extra `tracing`; nothing imports this without an endpoint.

A call is recorded when its caller's trace is, and otherwise by chance. Spans are sent in batches by
a thread of the SDK, and dropped when the collector cannot be reached: no call ever waits for it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from grpc_reflection.v1alpha import reflection
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from outrider_runtime import health
from outrider_runtime.tracing import Attributes
from outrider_runtime.version import release

_PROPAGATOR = TraceContextTextMapPropagator()

_NOT_RECORDED = frozenset(
    {health.SERVICE_NAME, reflection.SERVICE_NAME, "outrider.v1.DraftService"}
)
"""Probes say nothing, and a draft link lasts for days: its sessions are recorded instead."""


class OtelSpan:
    """One span."""

    def __init__(self, tracer: trace.Tracer, span: trace.Span) -> None:
        self._tracer = tracer
        self._span = span
        self._context = trace.set_span_in_context(span, Context())

    @property
    def traceparent(self) -> str:
        """See the port."""
        carrier: dict[str, str] = {}
        _PROPAGATOR.inject(carrier, self._context)
        return carrier["traceparent"]

    @property
    def trace_id(self) -> str:
        """See the port."""
        return trace.format_trace_id(self._span.get_span_context().trace_id)

    def part(self, name: str, began: float, ended: float, attributes: Attributes) -> OtelSpan:
        """See the port."""
        # Clocks on the wall jump, so the distance to them is that of this moment.
        offset = time.time() - time.monotonic()
        span = self._tracer.start_span(
            name,
            self._context,
            attributes=dict(attributes),
            start_time=int((began + offset) * 1e9),
        )
        span.end(int((max(began, ended) + offset) * 1e9))
        return OtelSpan(self._tracer, span)

    def end(self, attributes: Attributes, *, fault: str | None = None) -> None:
        """See the port."""
        self._span.set_attributes(dict(attributes))
        if fault is not None:
            self._span.set_status(trace.StatusCode.ERROR, fault)
        self._span.end()


class OtelTracer:
    """Spans of one service."""

    def __init__(self, service: str, processor: SpanProcessor, sample_ratio: float = 1.0) -> None:
        """Nothing global is touched: two services in a process have a tracer each.

        Args:
            service: Name of the service.
            processor: Takes the spans.
            sample_ratio: Share of the calls without a trace that are recorded.
        """
        resource = Resource.create({SERVICE_NAME: service, SERVICE_VERSION: release()})
        self._provider = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(sample_ratio)),
            resource=resource,
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("outrider", release())

    def begin_call(
        self, method: str, metadata: Mapping[str, str], request_id: str
    ) -> OtelSpan | None:
        """See the port."""
        service, _, name = method.strip("/").partition("/")
        if service in _NOT_RECORDED:
            return None
        return self._begin(
            f"{service}/{name}",
            _PROPAGATOR.extract(metadata, Context()),
            trace.SpanKind.SERVER,
            {
                "rpc.system": "grpc",
                "rpc.service": service,
                "rpc.method": name,
                "outrider.request_id": request_id,
            },
        )

    def begin_session(self, traceparent: str, attributes: Attributes) -> OtelSpan | None:
        """See the port."""
        if not traceparent:
            return None
        context = _PROPAGATOR.extract({"traceparent": traceparent}, Context())
        if not trace.get_current_span(context).get_span_context().is_valid:
            return None
        return self._begin("draft session", context, trace.SpanKind.SERVER, attributes)

    def close(self) -> None:
        """See the port."""
        self._provider.shutdown()

    def _begin(
        self, name: str, context: Context, kind: trace.SpanKind, attributes: Attributes
    ) -> OtelSpan | None:
        span = self._tracer.start_span(name, context, kind=kind, attributes=dict(attributes))
        return OtelSpan(self._tracer, span) if span.is_recording() else None


def tracer_to(service: str, endpoint: str, sample_ratio: float) -> OtelTracer:
    """A tracer that sends to a collector; see `tracing.open_tracer`."""
    exporter = OTLPSpanExporter(endpoint=endpoint, insecure=endpoint.startswith("http://"))
    return OtelTracer(service, BatchSpanProcessor(exporter), sample_ratio)
