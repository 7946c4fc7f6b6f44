"""What every service counts, by Prometheus names, and the exporter that shows it.

Counters for anything a rate is taken of. Every service instance has a registry of its own. Names
follow vLLM's where the meaning is the same. No label ever holds what a caller sent. Knows nothing
of where the numbers come from.
"""

from __future__ import annotations

from collections.abc import Sequence
from threading import Thread
from wsgiref.simple_server import WSGIServer

from outrider_contract.errors import Reason
from prometheus_client import (
    CollectorRegistry,
    Counter,
    GCCollector,
    Histogram,
    Info,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
    start_http_server,
)
from prometheus_client.core import HistogramMetricFamily

from outrider_runtime.draft_protocol import PROTOCOL_VERSION
from outrider_runtime.errors import StartupError
from outrider_runtime.interceptors import CallEnd
from outrider_runtime.tally import LATENCY_BUCKETS, Tally
from outrider_runtime.version import release

# A time of creation beside each counter would make half of the page; nothing asks for it.
disable_created_metrics()  # type: ignore[no-untyped-call]  # the library's own


def new_registry() -> CollectorRegistry:
    """A registry with what Prometheus expects of any process: memory, CPU, open files."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    build = Info("outrider_build", "The release that runs.", registry=registry)
    build.info({"version": release(), "draft_protocol": str(PROTOCOL_VERSION)})
    return registry


def histogram(
    name: str, text: str, tallies: Sequence[tuple[Sequence[str], Tally]], labels: Sequence[str] = ()
) -> HistogramMetricFamily:
    """Tallies in Prometheus' form.

    Args:
        name: The metric's, without our prefix.
        text: What it means.
        tallies: Each with the values of its labels.
        labels: Their names.
    """
    family = HistogramMetricFamily(f"outrider_{name}", text, labels=labels)
    for values, tally in tallies:
        cumulative, total = tally.buckets
        family.add_metric(values, cumulative, total)
    return family


_WATCHED = (
    Reason.INTERNAL,
    Reason.OVERLOADED,
    Reason.TOO_MANY_STREAMS,
    Reason.TOKEN_QUOTA_EXCEEDED,
)
"""Shown at 0 from a method's first call on: a rate does not see a counter that begins at 1."""


class CallMetrics:
    """gRPC calls; `observe` is what `GrpcServer` takes."""

    def __init__(self, registry: CollectorRegistry) -> None:
        labels = ("method", "code")
        self._handled = Counter(
            "outrider_grpc_server_handled", "Calls that ended.", labels, registry=registry
        )
        self._refused = Counter(
            "outrider_grpc_server_refused",
            "Calls that ended with an error of this service, by its reason.",
            ("method", "reason"),
            registry=registry,
        )
        self._methods: set[str] = set()
        self._seconds = Histogram(
            "outrider_grpc_server_handling_seconds",
            "Time from the arrival of a call to its end.",
            ("method",),
            buckets=LATENCY_BUCKETS,
            registry=registry,
        )

    def observe(self, end: CallEnd) -> None:
        """Counts a call that ended."""
        if end.method not in self._methods:
            self._methods.add(end.method)
            for reason in _WATCHED:
                self._refused.labels(end.method, reason)
        self._handled.labels(end.method, end.code.name).inc()
        self._seconds.labels(end.method).observe(end.seconds)
        if end.reason is not None:
            self._refused.labels(end.method, end.reason).inc()


class MetricsExporter:
    """Shows a registry over HTTP at `/metrics`, from a thread of its own."""

    def __init__(self, registry: CollectorRegistry, *, host: str, port: int) -> None:
        self._registry = registry
        self._host = host
        self._port = port
        self._running: tuple[WSGIServer, Thread] | None = None

    def start(self) -> int:
        """Binds and serves.

        Returns:
            The bound port.

        Raises:
            StartupError: The port cannot be had.
        """
        try:
            server, thread = start_http_server(self._port, self._host, self._registry)
        except OSError as error:
            why = error.strerror or error
            raise StartupError(
                f"metrics port {self._port} on {self._host} cannot be had: {why}"
            ) from None
        self._running = (server, thread)
        return int(server.server_port)

    def stop(self) -> None:
        """Stops serving and frees the port. Does nothing when not started."""
        if self._running is None:
            return
        server, thread = self._running
        self._running = None
        server.shutdown()
        server.server_close()
        thread.join()
