"""Offer a target 1, 2, 4 and 10 times what it can serve, and see who is served how.

`make overload`.

Calls arrive as a Poisson stream, whatever became of those before (an open loop: callers of an
overloaded service do not slow down to please it), and none tries again. Capacity is what a closed
loop of as many callers as the target runs at once gets through.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import importlib.util
import json
import random
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from outrider_client import AsyncClient, GenerationConfig, OverloadedError
from outrider_demo.processes import Service
from soak.traffic import MODELS, kinds

NUM_SEQS = 4
WAITING = 4
FACTORS = (1, 2, 4, 10)
NEW_TOKENS = 32

MOST_LATENCY = 2.0
"""Of p99 at any load to p99 at capacity: the queue is bounded, so the wait is."""
LEAST_GOODPUT = 0.8
"""Of tokens a second to those at capacity."""


class Served(NamedTuple):
    """A call that was served."""

    seconds: float
    first_token_seconds: float
    num_tokens: int


class Outcome:
    """What became of the calls of a load."""

    def __init__(self) -> None:
        self.served: list[Served] = []
        self.refusal_seconds: list[float] = []
        self.delays: list[float | None] = []


async def call(client: AsyncClient, number: int, outcome: Outcome) -> None:
    """One call, timed from its arrival to its end."""
    kind = kinds()[number % 4]
    config = GenerationConfig(max_new_tokens=NEW_TOKENS, clear_fields=("eos_token_id",))
    started = time.monotonic()
    try:
        completion = await client.generate(kind.prompt, config, seed=number)
    except OverloadedError as error:
        outcome.refusal_seconds.append(time.monotonic() - started)
        outcome.delays.append(error.retry_after)
        return
    usage = completion.usage
    outcome.served.append(
        Served(
            time.monotonic() - started, usage.time_to_first_token_seconds, usage.completion_tokens
        )
    )


async def closed_loop(client: AsyncClient, seconds: float) -> float:
    """Calls a second of as many callers as run at once."""
    outcome = Outcome()
    until = time.monotonic() + seconds

    async def caller(seed: int) -> None:
        number = seed
        while time.monotonic() < until:
            await call(client, number, outcome)
            number += NUM_SEQS

    started = time.monotonic()
    await asyncio.gather(*(caller(seed) for seed in range(NUM_SEQS)))
    return len(outcome.served) / (time.monotonic() - started)


async def open_loop(client: AsyncClient, rate: float, seconds: float) -> dict[str, Any]:
    """Calls at a rate, each on its own; what became of them."""
    chance = random.Random(1)
    outcome = Outcome()
    calls: list[asyncio.Task[None]] = []
    started = time.monotonic()
    due = started
    while (due := due + chance.expovariate(rate)) < started + seconds:
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        calls.append(asyncio.create_task(call(client, len(calls), outcome)))
    await asyncio.gather(*calls)
    took = time.monotonic() - started
    latencies = [each.seconds for each in outcome.served]
    return {
        "offered_per_second": len(calls) / seconds,
        "sent": len(calls),
        "served": len(outcome.served),
        "refused": len(outcome.refusal_seconds),
        "refused_without_delay": sum(delay is None for delay in outcome.delays),
        "goodput_tokens_per_second": sum(each.num_tokens for each in outcome.served) / took,
        "latency_p50": quantile(latencies, 0.5),
        "latency_p99": quantile(latencies, 0.99),
        "first_token_p50": quantile([each.first_token_seconds for each in outcome.served], 0.5),
        "first_token_p99": quantile([each.first_token_seconds for each in outcome.served], 0.99),
        "refusal_p50": quantile(outcome.refusal_seconds, 0.5),
        "refusal_p99": quantile(outcome.refusal_seconds, 0.99),
    }


def quantile(values: Sequence[float], share: float) -> float | None:
    """The smallest value that `share` of them do not exceed; None of none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else None


async def measure(seconds: float, rounds: int) -> dict[str, Any]:
    """The curve; loads take turns, so that a change of the machine meets all of them."""
    flags = [
        "--model", str(MODELS / "target"), "--threads", "1", "--max-num-seqs", str(NUM_SEQS),
        "--max-waiting-requests", str(WAITING),
    ]  # fmt: skip
    with Service("outrider_target", flags) as target:
        async with AsyncClient(target.address, max_retries=0, timeout=120) as client:
            await closed_loop(client, 2.0)  # warm
            capacities: list[float] = []
            runs: dict[int, list[dict[str, Any]]] = {factor: [] for factor in FACTORS}
            for _ in range(rounds):
                capacities.append(await closed_loop(client, seconds / 2))
                for factor in FACTORS:
                    run = await open_loop(client, factor * capacities[-1], seconds)
                    runs[factor].append(run)
            loads = await client.loads()
    curve = [{"times_capacity": factor, **_median(runs[factor])} for factor in FACTORS]
    for point in curve:
        for name in ("goodput_tokens_per_second", "latency_p50", "latency_p99"):
            point[f"{name}_ratio"] = statistics.median(
                run[name] / base[name]
                for run, base in zip(runs[point["times_capacity"]], runs[1], strict=True)
            )
    report = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "capacity_per_second": statistics.median(capacities),
        "seconds_each": seconds,
        "rounds": rounds,
        "running_at_once": NUM_SEQS,
        "waiting": WAITING,
        "curve": curve,
    }
    return {**report, "faults": _faults(curve, loads.num_running_sequences)}


def _median(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Numbers of calls add up; of the rest the median."""
    counts = ("sent", "served", "refused", "refused_without_delay")
    point: dict[str, Any] = {}
    for name in runs[0]:
        values = [run[name] for run in runs if run[name] is not None]
        if name in counts:
            point[name] = sum(values)
        else:
            point[name] = statistics.median(values) if values else None
    return point


def _faults(curve: Sequence[dict[str, Any]], num_running: int) -> list[str]:
    faults = [f"{num_running} sequences still run"] if num_running else []
    for point in curve:
        load = f"at {point['times_capacity']} times capacity"
        if point["served"] + point["refused"] != point["sent"]:
            faults.append(f"{load}: calls are not accounted for")
        if point["refused_without_delay"]:
            faults.append(f"{load}: refused without a delay")
        if point["latency_p99_ratio"] > MOST_LATENCY:
            faults.append(f"{load}: p99 is {point['latency_p99_ratio']:.2f} times that at capacity")
        if point["goodput_tokens_per_second_ratio"] < LEAST_GOODPUT:
            faults.append(f"{load}: goodput fell to {point['goodput_tokens_per_second_ratio']:.0%}")
        if point["times_capacity"] > 1 and not point["refused"]:
            faults.append(f"{load}: nothing was refused")
    return faults


def plot(report: dict[str, Any], path: Path) -> None:
    """The curve as a picture, where matplotlib is installed (the extra `bench`)."""
    if importlib.util.find_spec("matplotlib") is None:
        print("no picture: matplotlib is not installed")
        return
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    curve = report["curve"]
    loads = [point["times_capacity"] for point in curve]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
    for share, style in (("p50", "o-"), ("p99", "s--")):
        left.plot(loads, [point[f"latency_{share}"] for point in curve], style, label=share)
    left.set(xlabel="times capacity offered", ylabel="seconds of served calls", ylim=(0, None))
    left.legend()
    right.plot(loads, [point["goodput_tokens_per_second"] for point in curve], "o-")
    right.set(xlabel="times capacity offered", ylabel="goodput, tokens/s", ylim=(0, None))
    figure.savefig(path, dpi=110)


def main() -> None:
    """Measure, write, tell; status 1 when a promise is broken."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10, help="of each load")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--report", type=Path)
    arguments = parser.parse_args()
    report = asyncio.run(measure(arguments.seconds, arguments.rounds))
    if arguments.report is not None:
        arguments.report.parent.mkdir(parents=True, exist_ok=True)
        arguments.report.write_text(json.dumps(report, indent=1) + "\n")
        plot(report, arguments.report.with_suffix(".png"))
    print(json.dumps(report, indent=1))
    sys.exit(1 if report["faults"] else 0)


if __name__ == "__main__":
    main()
