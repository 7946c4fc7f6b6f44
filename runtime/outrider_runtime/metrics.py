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


class TargetMetrics:
    """What the target service counts: attributes to `inc`, `set` and `observe`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"outrider_{name}", text, labels, registry=registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"outrider_{name}", text, labels, registry=registry)

        def seconds(name: str, text: str) -> Histogram:
            return Histogram(
                f"outrider_{name}_seconds", text, buckets=LATENCY_BUCKETS, registry=registry
            )

        self.calls = CallMetrics(registry)

        self.num_requests_running = gauge("num_requests_running", "Requests in the running batch.")
        self.num_requests_waiting = gauge("num_requests_waiting", "Requests waiting for admission.")
        self.num_sequences_running = gauge(
            "num_sequences_running", "Sequences in the running batch."
        )
        self.kv_cache_usage = gauge("kv_cache_usage", "Share of the KV cache in use, 0 to 1.")
        self.requests = counter("requests", "Requests that ended, by reason.", "finish_reason")
        self.requests_refused = counter(
            "requests_refused", "Requests refused before they ran, by reason.", "reason"
        )
        self.prompt_tokens = counter("prompt_tokens", "Prompt tokens of admitted requests.")
        self.generation_tokens = counter("generation_tokens", "Tokens generated.")
        self.num_preemptions = counter(
            "num_preemptions", "Sequences preempted because the KV cache was full."
        )

        self.queue_time = seconds("request_queue_time", "Time from arrival to admission.")
        self.time_to_first_token = seconds(
            "time_to_first_token", "Time from arrival to the first token."
        )
        self.time_per_output_token = seconds(
            "time_per_output_token", "Mean time per token of a request after its first."
        )
        self.e2e_request_latency = seconds(
            "e2e_request_latency", "Time from arrival to the end of a request."
        )
        self.round_time = seconds("round", "Time of a round: one forward and what goes with it.")
        self.forward_time = seconds("forward", "Time of a target forward.")

        self.spec_decode_num_drafts = counter(
            "spec_decode_num_drafts", "Rounds of a sequence that verified a draft."
        )
        self.spec_decode_num_draft_tokens = counter(
            "spec_decode_num_draft_tokens", "Draft tokens verified."
        )
        self.spec_decode_num_accepted_tokens = counter(
            "spec_decode_num_accepted_tokens", "Draft tokens accepted."
        )
        self.spec_decode_num_accepted_tokens_per_pos = counter(
            "spec_decode_num_accepted_tokens_per_pos",
            "Draft tokens accepted, by their position in the draft.",
            "position",
        )
        self.spec_decode_num_plain_rounds = counter(
            "spec_decode_num_plain_rounds",
            "Rounds of a sequence with a drafter that found nothing to verify, by reason.",
            "reason",
        )

        self.draft_latency = seconds("draft_latency", "Time from asking a drafter to its answer.")
        self.draft_wait = seconds("draft_wait", "Time a sequence waited for a drafter in a round.")
        self.draft_links_ready = gauge("draft_links_ready", "Draft services connected and in use.")
        self.draft_link_failures = counter(
            "draft_link_failures", "Draft links lost or refused, by reason.", "reason"
        )
        self.draft_offences = counter(
            "draft_offences",
            "Proposals dropped because they broke the protocol, by reason.",
            "reason",
        )

    def count_draft(self, num_draft_tokens: int, num_accepted_tokens: int) -> None:
        """Counts one round of one sequence that verified at least one draft token."""
        self.spec_decode_num_drafts.inc()
        self.spec_decode_num_draft_tokens.inc(num_draft_tokens)
        self.spec_decode_num_accepted_tokens.inc(num_accepted_tokens)
        for position in range(num_accepted_tokens):
            self.spec_decode_num_accepted_tokens_per_pos.labels(str(position)).inc()


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
