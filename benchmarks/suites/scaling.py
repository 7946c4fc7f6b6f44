"""What a token costs with more context, more streams, more vocabulary and more finished requests.

Points of a series are compared with one another, so each repetition visits all of them. Plain
decoding on the shipped target, but for finished requests, where drafting is measured as well.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from outrider_client import Client, SpeculationConfig

from benchmarks import outrider_services, prompts
from benchmarks.contenders import Outcome, Outrider, Workload
from benchmarks.pairs.catalogue import pair
from benchmarks.pairs.stretched import lengthened, with_vocabulary
from benchmarks.suites.options import Options

_CONTEXTS = (256, 1024, 2048, 4096, 7936)
_POSITIONS = 8192
_VOCABULARIES = (4096, 16384, 65536)
_STREAMS = (1, 2, 4, 8, 16, 32, 64)
_FINISHED = (0, 250, 500, 1000)
_NEW_TOKENS = 32
_PLAIN = SpeculationConfig(enabled=False)


def run(options: Options) -> Iterator[dict[str, Any]]:
    """One series after another."""
    yield _context(options)
    yield _streams(options)
    yield _vocabulary(options)
    yield _finished(options)


def _context(options: Options) -> dict[str, Any]:
    tokens = options.new_tokens or _NEW_TOKENS
    flags = ["--kv-cache-tokens", str(4 * _POSITIONS), "--no-prefix-caching"]
    with outrider_services.alone(lengthened(_POSITIONS), flags) as client:
        plain = Outrider("plain", client, _PLAIN)
        works = {
            context: Workload(prompts.long(context, 1), 1, False, tokens) for context in _CONTEXTS
        }
        runs = _in_turn({x: (plain, work) for x, work in works.items()}, options.repetitions)
    series = _series("context", "tokens of context", runs)
    slope, intercept = statistics.linear_regression(
        [point["x"] for point in series["points"]],
        [point["ms_per_token"] for point in series["points"]],
    )
    return series | {"slope_ms_per_1000": 1000 * slope, "intercept_ms": intercept}


def _streams(options: Options) -> dict[str, Any]:
    tokens = options.new_tokens or _NEW_TOKENS
    streams = options.streams or _STREAMS
    flags = ["--max-num-seqs", str(max(streams)), "--no-prefix-caching"]
    flags += ["--kv-cache-tokens", str(512 * max(streams))]
    with outrider_services.alone(pair("shipped").target, flags) as client:
        plain = Outrider("plain", client, _PLAIN)
        works = {n: Workload(prompts.code(n), n, False, tokens) for n in streams}
        runs = _in_turn({x: (plain, work) for x, work in works.items()}, options.repetitions)
    return _series("streams", "streams", runs)


def _vocabulary(options: Options) -> dict[str, Any]:
    tokens = options.new_tokens or _NEW_TOKENS
    work = Workload(prompts.code(2), 1, False, tokens)
    with ExitStack() as stack:
        contenders = {}
        for size in _VOCABULARIES:
            target = outrider_services.alone(with_vocabulary(size), ["--kv-cache-tokens", "4096"])
            contenders[size] = Outrider("plain", stack.enter_context(target), _PLAIN)
        runs = _in_turn({x: (each, work) for x, each in contenders.items()}, options.repetitions)
    return _series("vocabulary", "tokens of vocabulary", runs)


def _finished(options: Options) -> dict[str, Any]:
    """Everything that could pile up is on: prefix cache, remembered outputs, draft sessions."""
    tokens = options.new_tokens or _NEW_TOKENS
    work = Workload(prompts.code(2), 1, False, tokens)
    points = []
    with outrider_services.serve(pair("shipped"), streams=16, remembering=True) as services:
        done = 0
        for count in _FINISHED:
            _finish(services.client, count - done)
            done = count
            plain, drafting = [], []
            for repetition in range(options.repetitions + 1):
                # A salt of its own: it finds no outputs that it could repeat.
                salted = SpeculationConfig(cache_salt=f"{count} {repetition}")
                plain.append(Outrider("plain", services.client, _PLAIN).run(work))
                drafting.append(Outrider("drafting", services.client, salted).run(work))
            points.append(
                {
                    "x": count,
                    **_point(plain[1:]),
                    "drafting_ms_per_token": _point(drafting[1:])["ms_per_token"],
                    "memory_mb": services.target_megabytes(),
                }
            )
    return {"series": "finished", "unit": "finished requests", "points": points}


def _finish(client: Client, count: int) -> None:
    """Short requests of random tokens, each another."""
    if count == 0:
        return
    numbers = random.Random(count)
    texts = [[numbers.randrange(1, 4096) for _ in range(64)] for _ in range(count)]
    Outrider("default", client).run(Workload(texts, 16, False, 4))


def _in_turn(
    points: Mapping[int, tuple[Outrider, Workload]], repetitions: int
) -> dict[int, list[Outcome]]:
    for contender, work in points.values():
        contender.run(work)  # warm up
    runs: dict[int, list[Outcome]] = {x: [] for x in points}
    for _ in range(repetitions):
        for x, (contender, work) in points.items():
            runs[x].append(contender.run(work))
    return runs


def _series(name: str, unit: str, runs: Mapping[int, Sequence[Outcome]]) -> dict[str, Any]:
    points = [{"x": x, **_point(outcomes)} for x, outcomes in runs.items()]
    return {"series": name, "unit": unit, "points": points}


def _point(runs: Sequence[Outcome]) -> dict[str, Any]:
    """Milliseconds between a stream's tokens after its first, the median of medians."""
    each = [
        statistics.median(
            1000 * (arrival.last - arrival.first) / max(1, len(ids) - 1)
            for arrival, ids in zip(run.arrivals, run.token_ids, strict=True)
        )
        for run in runs
    ]
    return {
        "ms_per_token": statistics.median(each),
        "ms_per_token_runs": each,
        "first_token_ms": statistics.median(1000 * run.arrivals[0].first for run in runs),
        "tokens_per_second": statistics.median(run.num_tokens / run.seconds for run in runs),
    }
