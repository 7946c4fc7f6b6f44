"""What the draft service counts, by Prometheus names."""

from __future__ import annotations

from outrider_runtime.metrics import CallMetrics
from outrider_runtime.tally import LATENCY_BUCKETS, SIZE_BUCKETS
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info


class DraftMetrics:
    """What the draft service counts: attributes to `inc`, `set` and `observe`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"outrider_draft_{name}", text, labels, registry=registry)

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"outrider_draft_{name}", text, registry=registry)

        self.calls = CallMetrics(registry)
        self.drafter = Info("outrider_drafter", "What drafts.", registry=registry)

        self.num_frames_waiting = gauge(
            "num_frames_waiting", "Frames of targets that were not taken in yet: the queue."
        )
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
        self.answer_time = Histogram(
            "outrider_draft_answer_seconds",
            "Time from taking in a target's tokens to the whole answer.",
            buckets=LATENCY_BUCKETS,
            registry=registry,
        )
        self.step_lines = Histogram(
            "outrider_draft_step_lines",
            "Lines that a step of the proposer made longer: its batch.",
            buckets=SIZE_BUCKETS,
            registry=registry,
        )
        self.num_forwards = counter("num_forwards", "Forwards of the draft model.")
        self.forward_time = Histogram(
            "outrider_draft_forward_seconds",
            "Time of a draft forward.",
            buckets=LATENCY_BUCKETS,
            registry=registry,
        )
