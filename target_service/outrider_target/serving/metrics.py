"""What the target counts, in Prometheus names: requests as they end, the engine when asked.

Knows nothing of how the numbers come about.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from outrider.v1 import generation_pb2 as pb
from outrider_runtime.metrics import histogram
from outrider_runtime.recent_texts import RecentTexts
from outrider_runtime.request_context import current_caller
from outrider_runtime.tally import LATENCY_BUCKETS
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from outrider_target.drafting.remote.foresight import Foresight
from outrider_target.engine.events import RequestCompleted
from outrider_target.engine.round_tallies import RoundTallies
from outrider_target.engine.statistics import DrafterCounters
from outrider_target.engine.thread import Loads
from outrider_target.requests.request import DraftMethod
from outrider_target.serving.caller_metrics import CallerMetrics


class RequestMetrics:
    """Counted once a request."""

    def __init__(self, registry: CollectorRegistry, callers: CallerMetrics | None = None) -> None:
        self._callers = callers

        def seconds(name: str, text: str) -> Histogram:
            return Histogram(
                f"outrider_{name}_seconds", text, buckets=LATENCY_BUCKETS, registry=registry
            )

        self._sequences = Counter(
            "outrider_sequences",
            "Sequences that ended, by reason.",
            ("finish_reason",),
            registry=registry,
        )
        self._prompt_tokens = Counter(
            "outrider_prompt_tokens", "Prompt tokens of completed requests.", registry=registry
        )
        self._queue_time = seconds("request_queue_time", "Time from arrival to admission.")
        self._time_to_first_token = seconds(
            "time_to_first_token", "Time from arrival to the first token."
        )
        self._time_per_output_token = seconds(
            "time_per_output_token", "Mean time per token of a sequence after its first."
        )
        self._latency = seconds("e2e_request_latency", "Time from arrival to the end of a request.")

    def count_request(
        self, results: Sequence[pb.SequenceResult], num_prompt_tokens: int, end: RequestCompleted
    ) -> None:
        """Count a request that ran to its end."""
        for result in results:
            reason = pb.FinishReason.Name(result.finish_reason).removeprefix("FINISH_REASON_")
            self._sequences.labels(reason.lower()).inc()
        self._prompt_tokens.inc(num_prompt_tokens)
        if self._callers is not None:
            self._callers.count_tokens(
                current_caller(), prompt=num_prompt_tokens, generated=end.num_completion_tokens
            )
        self._queue_time.observe(end.queue_seconds)
        self._time_to_first_token.observe(end.time_to_first_token_seconds)
        self._latency.observe(end.total_seconds)
        later_tokens = max((result.num_completion_tokens for result in results), default=0) - 1
        if later_tokens > 0:
            decoding = end.total_seconds - end.time_to_first_token_seconds
            self._time_per_output_token.observe(decoding / later_tokens)


class Capacity(NamedTuple):
    """How much there is of what requests share."""

    max_num_seqs: int
    max_waiting_requests: int
    num_blocks: int
    block_size: int

    @property
    def num_tokens(self) -> int:
        """Tokens that the KV cache holds."""
        return self.num_blocks * self.block_size


class EngineCollector(Collector):
    """The engine's own counters, read when somebody asks: nothing is counted twice."""

    def __init__(self, loads: Callable[[], Loads], capacity: Capacity) -> None:
        self._loads = loads
        self._capacity = capacity

    def collect(self) -> Iterator[Metric]:
        """One snapshot in Prometheus' form; counters get their `_total` there."""
        loads = self._loads()
        speculation = loads.speculation
        gauges = {
            "num_sequences_running": (
                "Sequences that run.",
                loads.num_running_sequences,
            ),
            "num_requests_waiting": ("Requests waiting for admission.", loads.num_waiting_requests),
            "kv_cache_usage": (
                "Share of the KV cache in use, 0 to 1.",
                1 - loads.num_free_blocks / self._capacity.num_blocks,
            ),
        }
        since = loads.waiting_since
        gauges |= {
            "oldest_waiting_seconds": (
                "Time that the longest waiting request has waited; 0 when none waits.",
                0.0 if since is None else max(0.0, time.monotonic() - since),
            ),
            "max_num_seqs": ("Sequences that may run at once.", self._capacity.max_num_seqs),
            "max_waiting_requests": (
                "Requests that may wait; more are refused.",
                self._capacity.max_waiting_requests,
            ),
            "kv_cache_tokens": ("Size of the KV cache in tokens.", self._capacity.num_tokens),
        }
        counters = {
            "generation_tokens": ("Tokens generated.", loads.num_generated_tokens),
            "num_preemptions": (
                "Sequences preempted because the KV cache was full.",
                loads.num_preemptions,
            ),
            "prefix_cache_queries": (
                "Tokens of admitted sequences, looked up in the prefix cache.",
                loads.prefix_cache.num_query_tokens,
            ),
            "prefix_cache_hits": (
                "Of them, tokens that were there.",
                loads.prefix_cache.num_hit_tokens,
            ),
            "spec_decode_num_drafts": (
                "Rounds of a sequence that verified a draft.",
                speculation.num_drafts,
            ),
            "spec_decode_num_draft_tokens": (
                "Draft tokens verified.",
                speculation.num_draft_tokens,
            ),
            "spec_decode_num_accepted_tokens": (
                "Draft tokens accepted.",
                speculation.num_accepted_tokens,
            ),
            "spec_decode_num_plain_rounds": (
                "Rounds of a sequence with a drafter that found nothing to verify.",
                speculation.num_plain_rounds,
            ),
        }
        if loads.speedup_ratio is not None:
            gauges["spec_decode_speedup_ratio"] = (
                "Tokens a second over those of plain decoding, measured; absent until it was.",
                loads.speedup_ratio,
            )
        for name, (text, value) in gauges.items():
            yield GaugeMetricFamily(f"outrider_{name}", text, value=value)
        for name, (text, value) in counters.items():
            yield CounterMetricFamily(f"outrider_{name}", text, value=value)
        per_position = CounterMetricFamily(
            "outrider_spec_decode_num_accepted_tokens_per_pos",
            "Draft tokens accepted, by their position in the draft.",
            labels=["position"],
        )
        for position, count in enumerate(tuple(speculation.num_accepted_tokens_per_pos)):
            per_position.add_metric([str(position)], count)
        yield per_position
        yield from _by_drafter(speculation.by_method)


class RoundCollector(Collector):
    """Distributions over rounds, which the engine tallies."""

    def __init__(self, tallies: RoundTallies) -> None:
        self._tallies = tallies

    def collect(self) -> Iterator[Metric]:
        """One snapshot in Prometheus' form."""
        tallies = self._tallies
        for name, text, tally in (
            (
                "round_seconds",
                "Time of a round, from its plan to its last commit.",
                tallies.seconds,
            ),
            (
                "verify_forward_seconds",
                "Of that, the forward and choosing each row's own token.",
                tallies.forward_seconds,
            ),
            ("round_rows", "Rows of a round's forward.", tallies.num_rows),
            ("round_sequences", "Sequences in a round.", tallies.num_sequences),
            (
                "inter_token_latency_seconds",
                "Time from tokens of a sequence to its next, over the number of these; once for "
                "each of them.",
                tallies.inter_token_seconds,
            ),
        ):
            yield histogram(name, text, [((), tally)])


def _by_drafter(shares: Mapping[DraftMethod, DrafterCounters]) -> Iterator[Metric]:
    """Who of them earns its keep. Not summed elsewhere: the totals have names of their own."""
    drafted = CounterMetricFamily(
        "outrider_drafter_num_draft_tokens",
        "Draft tokens verified, by who proposed them.",
        labels=["method"],
    )
    accepted = CounterMetricFamily(
        "outrider_drafter_num_accepted_tokens",
        "Draft tokens accepted, by who proposed them.",
        labels=["method"],
    )
    for method, share in tuple(shares.items()):
        drafted.add_metric([method.value], share.num_draft_tokens)
        accepted.add_metric([method.value], share.num_accepted_tokens)
    yield drafted
    yield accepted


class ForesightCollector(Collector):
    """How often the next draft was there before it was asked for."""

    def __init__(self, foresight: Foresight) -> None:
        self._foresight = foresight

    def collect(self) -> Iterator[Metric]:
        """One snapshot in Prometheus' form; counters get their `_total` there."""
        seen = self._foresight
        family = CounterMetricFamily(
            "outrider_draft_answers",
            "Rounds with a remote draft, by whether the target followed or corrected it, and "
            "whether something to verify next was there already.",
            labels=["answer", "next"],
        )
        for answer, count, ready in (
            ("followed", seen.followed, seen.followed_ready),
            ("corrected", seen.corrected, seen.corrected_ready),
        ):
            family.add_metric([answer, "ready"], ready)
            family.add_metric([answer, "missing"], count - ready)
        yield family


class MemoryCollector(Collector):
    """What is remembered to draft from."""

    def __init__(self, texts: RecentTexts) -> None:
        self._texts = texts

    def collect(self) -> Iterator[Metric]:
        """One snapshot in Prometheus' form."""
        yield GaugeMetricFamily(
            "outrider_suffix_cache_tokens",
            "Tokens of recent outputs that are remembered to draft from.",
            value=len(self._texts),
        )
        yield GaugeMetricFamily(
            "outrider_suffix_cache_tenants",
            "Tenants of whom something is remembered.",
            value=self._texts.num_tenants,
        )
