"""What a service counts, by Prometheus names, and the exporter that shows it.

Counters for anything a rate is taken of. Every service instance has a registry of its own. Names
follow vLLM's where the meaning is the same. No label ever holds what a caller sent. Knows nothing
of where the numbers come from.
"""

from __future__ import annotations

from threading import Thread
from wsgiref.simple_server import WSGIServer

import grpc
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    start_http_server,
)

from outrider_runtime.errors import StartupError

# From half a millisecond, a forward of a small model, to a minute, a long request; seconds.
LATENCY_BUCKETS = (
    0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0,
)  # fmt: skip


def new_registry() -> CollectorRegistry:
    """A registry with what Prometheus expects of any process: memory, CPU, open files."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    return registry


class CallMetrics:
    """gRPC calls; `observe` is what `GrpcServer` takes."""

    def __init__(self, registry: CollectorRegistry) -> None:
        labels = ("method", "code")
        self._handled = Counter(
            "outrider_grpc_server_handled", "Calls that ended.", labels, registry=registry
        )
        self._seconds = Histogram(
            "outrider_grpc_server_handling_seconds",
            "Time from the arrival of a call to its end.",
            ("method",),
            buckets=LATENCY_BUCKETS,
            registry=registry,
        )

    def observe(self, method: str, code: grpc.StatusCode, seconds: float) -> None:
        """Counts a call that ended."""
        self._handled.labels(method, code.name).inc()
        self._seconds.labels(method).observe(seconds)


class DraftMetrics:
    """What the draft service counts: attributes to `inc`, `set` and `observe`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"outrider_draft_{name}", text, labels, registry=registry)

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"outrider_draft_{name}", text, registry=registry)

        self.calls = CallMetrics(registry)

        self.num_links = gauge("num_links", "Targets connected.")
        self.num_sessions = gauge("num_sessions", "Sessions held, of all targets.")
        self.kv_cache_usage = gauge("kv_cache_usage", "Share of the KV cache in use, 0 to 1.")
        self.sessions_opened = counter("sessions_opened", "Sessions opened.")
        self.sessions_refused = counter(
            "sessions_refused", "Sessions refused, by reason.", "reason"
        )
        self.sessions_evicted = counter("sessions_evicted", "Sessions forgotten for lack of room.")
        self.resyncs = counter("resyncs", "Commits answered with Resync.")
        self.links_refused = counter("links_refused", "Links refused, by reason.", "reason")
        self.committed_tokens = counter("committed_tokens", "Tokens targets committed.")
        self.proposed_tokens = counter("proposed_tokens", "Tokens proposed.")
        self.answers = counter(
            "answers",
            "Commits of targets by whether they went along the chain or left it, and whether "
            "something to go on with was there already.",
            "answer",
            "next",
        )
        self.num_forwards = counter("num_forwards", "Forwards of the draft model.")
        self.forward_time = Histogram(
            "outrider_draft_forward_seconds",
            "Time of a draft forward.",
            buckets=LATENCY_BUCKETS,
            registry=registry,
        )


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
