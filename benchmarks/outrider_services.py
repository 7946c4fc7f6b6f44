"""Outrider as it is measured: a target, its draft service, and the settings that are compared."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from outrider_client import Client, SpeculationConfig
from outrider_demo.processes import Service

from benchmarks.contenders import Outrider, Workload
from benchmarks.memory import peak_megabytes, used_megabytes
from benchmarks.pairs.catalogue import Pair
from benchmarks.tuning import Tuned, speed

PLAIN = "Outrider plain"
DEFAULT = "Outrider, default settings"
BEST = "Outrider, best settings"

_COMPILE_SECONDS = 600.0
# Room for every stream's text, not more: the peers do not keep what they will not need either.
_CACHE_TOKENS_PER_STREAM = 512
_TRIALS = 3


@dataclass
class Services:
    """A target fed by a drafter."""

    client: Client
    target: Service
    draft: Service
    threads: int

    def peak_megabytes(self) -> float:
        """The most memory that both together ever had in use, at the most."""
        return peak_megabytes(self.target.pid) + peak_megabytes(self.draft.pid)

    def target_megabytes(self) -> float:
        """The memory that the target has in use now."""
        return used_megabytes(self.target.pid)


@contextmanager
def compiled(module: str, flags: Sequence[str]) -> Iterator[Service]:
    """A service whose model is compiled before it serves, which may take minutes the first time.

    What it does until then is no part of the measurement.
    """
    service = Service(module, [*flags, "--compile", "on"])
    service.start(timeout=_COMPILE_SECONDS)
    try:
        yield service
    finally:
        service.stop()


@contextmanager
def alone(model: Path, flags: Sequence[str]) -> Iterator[Client]:
    """A client of a target without a drafter, until the block ends."""
    always = ["--model", str(model), "--threads", "1", "--dtype", "float32"]
    with (
        compiled("outrider_target", [*always, *flags]) as target,
        Client(target.address, timeout=600) as client,
    ):
        yield client


@contextmanager
def serve(
    pair: Pair, *, streams: int, threads: int = 1, remembering: bool = False
) -> Iterator[Services]:
    """Both services for so many streams at a time; the drafter has one thread.

    Where every repetition asks the same, what is remembered of the last would be all that is
    needed: nothing is, unless it is asked for.
    """
    with ExitStack() as stack:
        draft = stack.enter_context(
            compiled("outrider_draft", ["--model", str(pair.draft), "--threads", "1"])
        )
        flags = ["--model", str(pair.target), "--threads", str(threads), "--draft", draft.address]
        flags += ["--max-num-seqs", str(max(16, streams)), "--dtype", "float32"]
        flags += ["--kv-cache-tokens", str(_CACHE_TOKENS_PER_STREAM * max(8, streams))]
        if not remembering:
            flags += ["--suffix-cache-tokens", "0", "--no-prefix-caching"]
        target = stack.enter_context(compiled("outrider_target", flags))
        client = stack.enter_context(Client(target.address, timeout=600))
        yield Services(client, target, draft, threads)


def fastest_threads(pair: Pair, trial: Workload) -> int:
    """Threads with which the target is fastest here, beside its drafter; they take turns."""
    numbers = range(1, (os.cpu_count() or 1) + 1)
    with ExitStack() as stack:
        rivals = {
            threads: Outrider(
                DEFAULT,
                stack.enter_context(serve(pair, streams=trial.streams, threads=threads)).client,
            )
            for threads in numbers
        }
        # The schedule learns for some rounds what pays.
        runs = [{n: speed(rivals[n], trial) for n in numbers} for _ in range(_TRIALS)]
    return max(numbers, key=lambda n: max(run[n] for run in runs))


def contenders(client: Client) -> list[Tuned]:
    """Plain, as it is by default, and the fastest of what a user might set."""
    return [
        Tuned(PLAIN, [Outrider("plain", client, SpeculationConfig(enabled=False))]),
        Tuned(DEFAULT, [Outrider("default", client)]),
        Tuned(
            BEST,
            [
                Outrider("default", client),
                Outrider("schedule heuristic", client, None, _scheduled("heuristic", 5)),
                Outrider("window 4", client, None, _scheduled("constant", 4)),
                Outrider("window 8", client, None, _scheduled("constant", 8)),
                Outrider("prompt lookup", client, SpeculationConfig(method="prompt-lookup")),
                Outrider("suffix tree", client, SpeculationConfig(method="suffix")),
            ],
        ),
    ]


def _scheduled(schedule: str, window: int) -> dict[str, Any]:
    return {"num_assistant_tokens_schedule": schedule, "num_assistant_tokens": window}
