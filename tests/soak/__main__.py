"""Mixed traffic for a long time, with callers that leave and drafters that die; writes a report.

`make soak-hour`, and `make soak-short` for two minutes. It ends with status 1 when a token was lost
or changed, a call is not accounted for, memory grew, or anything is left.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import json
import sys
import time
from pathlib import Path
from typing import Any

from outrider_client import AsyncClient
from outrider_demo.processes import Service
from soak.callers import CallerOverAndOver, Ledger
from soak.drafters import Restarting, free_port, steady
from soak.traffic import MODELS, kinds, learn_expected
from soak.watching import Watch, counted

MOST_GROWTH = 0.05
"""Of memory between the second and the last quarter; a leak of a request shows in an hour."""

GENERATE = "/outrider.v1.GenerationService/Generate"


async def soak(seconds: float, num_callers: int) -> dict[str, Any]:
    """Run everything; returns the report, with what is wrong under "faults"."""
    drafter_metrics, target_metrics = free_port(), free_port()
    every = (2.0, 6.0) if seconds < 600 else (10.0, 40.0)
    drafter = steady(drafter_metrics)
    restarting: Restarting | None = None
    try:
        await asyncio.to_thread(drafter.start)
        restarting = await asyncio.to_thread(Restarting, 1, every)
        flags = [
            "--model", str(MODELS / "target"), "--threads", "1",
            "--max-num-seqs", "6", "--max-waiting-requests", "3",
            "--max-model-len", "640", "--kv-cache-tokens", "672",  # so that some are preempted
            "--metrics-port", str(target_metrics),
            "--draft", drafter.address, "--draft", restarting.address,
        ]  # fmt: skip
        with Service("outrider_target", flags) as target:
            return await _traffic(
                target, drafter, restarting, seconds, num_callers,
                target_metrics=target_metrics, drafter_metrics=drafter_metrics,
            )  # fmt: skip
    finally:
        if restarting is not None:
            restarting.stop()
        drafter.stop()


async def _traffic(
    target: Service,
    drafter: Service,
    restarting: Restarting,
    seconds: float,
    num_callers: int,
    *,
    target_metrics: int,
    drafter_metrics: int,
) -> dict[str, Any]:
    mix, ledger = kinds(), Ledger()
    async with AsyncClient(target.address, timeout=120) as client:
        await learn_expected(client, mix)
        before = counted(target_metrics, "outrider_grpc_server_handled_total")
        processes = {"target": target.pid, "drafter": drafter.pid}
        watch = Watch(processes, client, interval=min(10.0, seconds / 40))
        stop = asyncio.Event()
        callers = [
            CallerOverAndOver(target.address, mix, ledger, seed) for seed in range(num_callers)
        ]
        restarting.begin()
        started = time.monotonic()
        tasks = [asyncio.create_task(each.run(stop)) for each in callers]
        tasks.append(asyncio.create_task(watch.run(stop)))
        await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_EXCEPTION)
        took = time.monotonic() - started
        stop.set()
        await asyncio.gather(*tasks)
        await asyncio.to_thread(restarting.settle)
        left = await _left(client, drafter_metrics)
        after = counted(target_metrics, "outrider_grpc_server_handled_total")
        loads = await client.loads()
    handled = {
        dict(labels)["code"]: int(value - before.get(labels, 0))
        for labels, value in after.items()
        if dict(labels)["method"] == GENERATE
    }
    report = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "seconds": round(took, 1),
        "callers": num_callers,
        "sent": ledger.sent,
        "ends": dict(ledger.ends),
        "kinds": dict(ledger.kinds),
        "tokens_of_whole_answers": ledger.num_tokens,
        "handled_by_the_target": handled,
        "draft_tokens": sum(ledger.drafted.values()),
        "accepted_tokens": sum(ledger.accepted.values()),
        "drafter": dict(restarting.done),
        "preemptions": loads.num_preemptions,
        "left": left,
        "memory": {
            f"{name} {what}": watch.growth(name, what)
            for name in processes
            for what in ("rss_mib", "files", "threads")
        },
        "differences": ledger.differences,
        "failures": ledger.failures[:20],
        "logged_failures": [one for one in target.log().splitlines() if "call_failed" in one][:5],
        "samples": watch.samples,
    }
    report["faults"] = [*_faults(report, ledger, mix), *restarting.faults]
    return report


async def _left(client: AsyncClient, drafter_metrics: int) -> dict[str, float]:
    """What is held when nobody asks any more; looks until it is nothing, half a minute at most."""
    for _ in range(60):
        loads, info = await client.loads(), await client.server_info()
        sessions = counted(drafter_metrics, "outrider_draft_num_sessions")
        left = {
            "running": loads.num_running_sequences,
            "waiting": loads.num_waiting_requests,
            "kv_cache_usage": loads.kv_cache_usage,
            "draft_sessions_of_the_target": sum(link.num_sessions for link in info.draft_links),
            "sessions_of_the_drafter": sum(sessions.values()),
            "links_down": sum(link.state != "ready" for link in info.draft_links),
        }
        if not any(left.values()):
            break
        await asyncio.sleep(0.5)
    return left


def _faults(report: dict[str, Any], ledger: Ledger, mix: list[Any]) -> list[str]:
    faults = [f"left: {name} {value}" for name, value in report["left"].items() if value]
    if ledger.differences or ledger.ends["different"]:
        faults.append(f"{len(ledger.differences)} answers differ from plain text")
    faults += ledger.failures[:5]
    if sum(ledger.ends.values()) != ledger.sent:
        faults.append(f"{ledger.sent} calls sent, {sum(ledger.ends.values())} ended")
    # A call whose caller left before the target heard of it is nobody's; all others it counted.
    handled = sum(report["handled_by_the_target"].values())
    unheard = ledger.sent - handled
    if not 0 <= unheard <= ledger.ends["deadline"]:
        faults.append(f"{ledger.sent} calls sent, the target counted {handled}")
    if not report["accepted_tokens"]:
        faults.append("nothing was accepted from a draft, so nothing was tried")
    if not ledger.ends["whole"] or not report["drafter"]:
        faults.append("no answer was read whole, or no drafter got into trouble")
    for name, growth in report["memory"].items():
        if growth["growth"] > MOST_GROWTH and growth["last_quarter"] - growth["second_quarter"] > 8:
            faults.append(f"{name} grew by {growth['growth']:.1%}")
    return faults


def main() -> None:
    """Run, write the report, tell in a few lines."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3600)
    parser.add_argument("--callers", type=int, default=12)
    parser.add_argument("--report", type=Path)
    arguments = parser.parse_args()
    report = asyncio.run(soak(arguments.seconds, arguments.callers))
    if arguments.report is not None:
        arguments.report.parent.mkdir(parents=True, exist_ok=True)
        arguments.report.write_text(json.dumps(report, indent=1) + "\n")
    told = {name: value for name, value in report.items() if name != "samples"}
    print(json.dumps(told, indent=1))
    sys.exit(1 if report["faults"] else 0)


if __name__ == "__main__":
    main()
