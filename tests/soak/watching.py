"""What services hold while they work: memory, files, threads, blocks, sessions."""

from __future__ import annotations

import asyncio
import os
import statistics
import time
import urllib.request
from pathlib import Path
from typing import Any

from outrider_client import AsyncClient
from prometheus_client.parser import text_string_to_metric_families


def held(pid: int) -> dict[str, float]:
    """Resident memory in MiB, open files and threads of a process."""
    status = dict(
        line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines()
    )
    return {
        "rss_mib": int(status["VmRSS"].split()[0]) / 1024,
        "files": len(os.listdir(f"/proc/{pid}/fd")),
        "threads": int(status["Threads"]),
    }


def counted(metrics_port: int, name: str) -> dict[tuple[tuple[str, str], ...], float]:
    """Samples of a metric on a service's page, by labels."""
    with urllib.request.urlopen(f"http://127.0.0.1:{metrics_port}/metrics", timeout=30) as page:
        text = page.read().decode()
    return {
        tuple(sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name
    }


class Watch:
    """Samples of all processes, taken at even intervals."""

    def __init__(self, processes: dict[str, int], client: AsyncClient, interval: float) -> None:
        self.samples: list[dict[str, Any]] = []
        self._processes = processes
        self._client = client
        self._interval = interval

    async def run(self, stop: asyncio.Event) -> None:
        """Look until `stop`."""
        started = time.monotonic()
        while not stop.is_set():
            loads = await self._client.loads()
            self.samples.append(
                {
                    "seconds": round(time.monotonic() - started, 1),
                    "kv_cache_usage": loads.kv_cache_usage,
                    "running": loads.num_running_sequences,
                    "waiting": loads.num_waiting_requests,
                    **{name: held(pid) for name, pid in self._processes.items()},
                }
            )
            try:
                async with asyncio.timeout(self._interval):
                    await stop.wait()
            except TimeoutError:
                continue

    def growth(self, process: str, what: str) -> dict[str, float]:
        """Of a process' holdings: medians of the second and of the last quarter of the run.

        The first quarter fills caches that are bounded: remembered texts, compiled grammars, arenas
        of the allocator.
        """
        values = [sample[process][what] for sample in self.samples]
        quarter = max(1, len(values) // 4)
        early = statistics.median(values[quarter : 2 * quarter] or values)
        late = statistics.median(values[-quarter:])
        return {
            "first": values[0],
            "second_quarter": early,
            "last_quarter": late,
            "highest": max(values),
            "growth": late / early - 1,
        }
