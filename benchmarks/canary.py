"""What the lossless canary costs live requests: one target, with it and without it in turns.

`python -m benchmarks.canary`. Some callers ask one request after another; in some of the turns as
many of the finished requests are decoded again as the rate says. What is said are medians of ratios
of neighbours, and beside them those of two turns without it, which is their noise: of the time that
all requests of a turn took, of a request's own, and of the processor's. Replays that are left over
at the end of a turn are done before the next one begins, and count for the processor alone.
"""

from __future__ import annotations

import argparse
import io
import itertools
import random
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from outrider_client import Client, GenerationConfig, SpeculationConfig
from outrider_demo import TARGET_DIR
from outrider_runtime import logs
from outrider_target.service import TargetService
from outrider_target.settings import ModelSettings, SpeculationDefaults, TargetSettings

from benchmarks import prompts
from benchmarks.own_target import running

_LOOKUP = SpeculationConfig(method="prompt-lookup")


class _Every:
    """In place of dice: exactly one in so many."""

    def __init__(self, number: int | None) -> None:
        self._numbers = itertools.count(1)
        self._number = number

    def random(self) -> float:
        number = next(self._numbers)
        return 1.0 if self._number is None or number % self._number else 0.0


class _Turn(NamedTuple):
    """What the requests of a turn took."""

    seconds: float
    request_seconds: float
    """Median of its requests."""
    processor_seconds: float


class _Load:
    """Callers that ask one request after another."""

    def __init__(self, service: TargetService, options: argparse.Namespace) -> None:
        assert service.serving is not None
        self._canary: Any = service.serving.canary
        self._options = options
        self._texts = prompts.code(options.callers) + prompts.repetition()
        length = options.tokens
        self._config = GenerationConfig(max_new_tokens=length, min_new_tokens=length)
        self._client = Client(f"127.0.0.1:{service.port}")

    def turn(self, every: int | None) -> _Turn:
        """One turn; `every`: which finished requests are decoded again, None: none."""
        self._canary._random = _Every(every)
        began, processor = time.perf_counter(), time.process_time()
        with ThreadPoolExecutor(self._options.callers) as callers:
            each = list(callers.map(self._ask, range(self._options.callers)))
        seconds = time.perf_counter() - began
        self._let_replays_end()
        spent = time.process_time() - processor
        own = statistics.median(itertools.chain.from_iterable(each))
        return _Turn(seconds, own, spent)

    def replays(self) -> dict[str, float]:
        """How many there were, by result."""
        return {
            sample.labels["result"]: sample.value
            for family in self._canary._results.collect()
            for sample in family.samples
            if sample.name.endswith("_total")
        }

    def _ask(self, caller: int) -> Sequence[float]:
        taken = []
        for number in range(self._options.requests):
            prompt = self._texts[(caller + number) % len(self._texts)]
            began = time.perf_counter()
            answer = self._client.generate(prompt, self._config, speculation=_LOOKUP)
            taken.append(time.perf_counter() - began)
            assert len(answer.token_ids) == self._options.tokens
        return taken

    def _let_replays_end(self) -> None:
        until = time.monotonic() + 60
        while self._canary._pending.qsize() or self._canary._requests._replays:
            assert time.monotonic() < until, "a replay does not end"
            time.sleep(0.05)
        time.sleep(0.1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=10)
    parser.add_argument("--rate", type=float, default=0.05)
    parser.add_argument("--callers", type=int, default=4)
    parser.add_argument("--requests", type=int, default=15, help="of each caller in a turn")
    parser.add_argument("--tokens", type=int, default=64)
    options = parser.parse_args()
    logs.configure(logs.LogLevel.INFO, logs.LogFormat.JSON, stream=io.StringIO())  # as shipped
    every = round(1 / options.rate)
    settings = TargetSettings(
        ModelSettings(str(TARGET_DIR), dtype="float32", threads=1),
        speculation=SpeculationDefaults(num_assistant_tokens_schedule="heuristic"),
        canary_rate=1.0,  # who is chosen is decided here
    )
    with running(settings) as service:
        load = _Load(service, options)
        load.turn(None)
        before = load.replays()
        turns: dict[bool, list[_Turn]] = {True: [], False: []}
        controls: list[_Turn] = []  # without, once more: the noise of such ratios
        for _ in range(options.repetitions):
            for way in random.sample(["with", "without", "control"], 3):
                took = load.turn(every if way == "with" else None)
                (controls if way == "control" else turns[way == "with"]).append(took)
        after = load.replays()
    print({name: after[name] - before[name] for name in after if after[name] > before[name]})
    for name in _Turn._fields:
        _tell(f"{name}, with over without", turns[True], turns[False], name)
        _tell(f"{name}, without over without", controls, turns[False], name)


def _tell(what: str, some: Sequence[_Turn], others: Sequence[_Turn], field: str) -> None:
    pairs = zip(some, others, strict=True)
    ratios = sorted(getattr(a, field) / getattr(b, field) for a, b in pairs)
    quarter = len(ratios) // 4
    print(
        f"{what}: median {statistics.median(ratios):.3f}, "
        f"half of them in {ratios[quarter]:.3f} to {ratios[-quarter - 1]:.3f} of {len(ratios)}"
    )


if __name__ == "__main__":
    main()
