"""What counting and tracing cost a round: one target, in turns.

`python -m benchmarks.observing`. Three ways take turns in each repetition, in changing order, on
one running service: nothing counted each round, rounds counted (as shipped), and a request that is
traced besides. What is said are medians of ratios of neighbours, of the time that the process, its
client included, spent on the processor: that is nearly the same however busy the machine is.
"""

from __future__ import annotations

import argparse
import io
import random
import statistics
import time
from collections.abc import Callable
from typing import Any

from opentelemetry import trace
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from outrider_client import Client, GenerationConfig, SpeculationConfig
from outrider_demo import TARGET_DIR
from outrider_runtime import logs
from outrider_runtime.otel import OtelTracer
from outrider_target.engine.round_tallies import RoundTallies
from outrider_target.settings import ModelSettings, SpeculationDefaults, TargetSettings

from benchmarks.own_target import running


class _Uncounted(RoundTallies):
    """Counts nothing."""

    def round_ended(self, *_: Any) -> None:
        pass

    def tokens_decided(self, *_: Any) -> None:
        pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=60)
    parser.add_argument("--tokens", type=int, default=128)
    options = parser.parse_args()
    logs.configure(logs.LogLevel.INFO, logs.LogFormat.JSON, stream=io.StringIO())  # as shipped
    # Kept in memory in batches, as a collector would take them; only callers' traces are recorded.
    exporter = InMemorySpanExporter()
    tracer = OtelTracer("outrider-target", BatchSpanProcessor(exporter), sample_ratio=0.0)
    settings = TargetSettings(
        ModelSettings(str(TARGET_DIR), dtype="float32", threads=1),
        speculation=SpeculationDefaults(num_assistant_tokens_schedule="heuristic"),
        metrics_port=0,
    )
    with running(settings, tracer) as service, Client(f"127.0.0.1:{service.port}") as client:
        assert service.serving is not None
        rounds: Any = service.serving.engine._rounds
        shipped, uncounted = rounds.tallies, _Uncounted()
        config = GenerationConfig(max_new_tokens=options.tokens, min_new_tokens=options.tokens)

        def request(
            tallies: RoundTallies, *, sampled: bool, speculation: SpeculationConfig
        ) -> float:
            rounds.tallies = tallies
            context = trace.SpanContext(
                random.getrandbits(127) + 1,
                random.getrandbits(63) + 1,
                is_remote=False,
                trace_flags=trace.TraceFlags(int(sampled)),
            )
            # The client passes on whatever the application's current span is.
            with trace.use_span(trace.NonRecordingSpan(context)):
                began = time.process_time()
                answer = client.generate("Once upon a time", config, speculation=speculation)
                seconds = time.process_time() - began
            assert len(answer.token_ids) == options.tokens
            return seconds

        ways: dict[str, Callable[[SpeculationConfig], float]] = {
            "uncounted": lambda how: request(uncounted, sampled=False, speculation=how),
            "counted": lambda how: request(shipped, sampled=False, speculation=how),
            "traced": lambda how: request(shipped, sampled=True, speculation=how),
        }
        for speculation in (
            SpeculationConfig(enabled=False),
            SpeculationConfig(method="prompt-lookup"),
        ):
            _compare(ways, speculation, options.repetitions, options.tokens)
    tracer.close()
    print(f"{len(exporter.get_finished_spans())} spans")


def _compare(
    ways: dict[str, Callable[[SpeculationConfig], float]],
    speculation: SpeculationConfig,
    repetitions: int,
    tokens: int,
) -> None:
    for way in ways.values():
        way(speculation)
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repetitions):
        for name in random.sample(sorted(ways), len(ways)):
            taken[name].append(ways[name](speculation))
    for name, base in (("counted", "uncounted"), ("traced", "counted")):
        ratios = sorted(a / b for a, b in zip(taken[name], taken[base], strict=True))
        quarter = len(ratios) // 4
        who = speculation.method or "plain"
        print(
            f"{who}: {name} over {base}: median {statistics.median(ratios):.4f}, "
            f"half of them in {ratios[quarter]:.3f} to {ratios[-quarter - 1]:.3f}; "
            f"{statistics.median(taken[base]) / tokens * 1e6:.0f} us a token {base}"
        )


if __name__ == "__main__":
    main()
