"""`make bench-control`: whether the controller keeps drafting from costing, and how much it leaves.

Three suites, each against plain decoding of the same target, in interleaved repetitions; a ratio is
the median of the ratios within a repetition. Plain decoding runs twice in each, so that the table
shows what a ratio of 1 looks like on this machine; the others are compared with the mean of both.

- useless: a drafter whose tokens are random. It should cost 3 percent at most.
- perfect: a drafter that knows the texts. As near to full windows as can be.
- mixed: the shipped drafter on code, prose and repetition; `auto` beside fixed windows.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from outrider_client import Client, SpeculationConfig
from outrider_demo import DRAFT_DIR, TARGET_DIR, held_out_prompts
from outrider_demo.processes import Service
from rich.console import Console
from rich.table import Table

from benchmarks.contenders import Outcome, Outrider, Workload
from benchmarks.outrider_services import compiled

Method = Literal["combined", "remote"]

_PLAIN = "plain"
_PLAIN_AGAIN = "plain again"
_METHODS: tuple[Method, ...] = ("combined", "remote")
_DRAFTER = ("--model", str(DRAFT_DIR), "--threads", "1")
_PROSE = (
    "The harbour was quiet that morning, and the old ferry",
    "When the letter finally came, nobody in the house wanted to",
    "It is a truth that every gardener learns in the second year:",
    "The committee met on Tuesday to consider whether the bridge",
)
_REPETITION = (
    "one two three four five six seven eight\n" * 6,
    "def get_name(self):\n    return self.name\n\n" * 4,
    '{"id": 1, "name": "a", "tags": []},\n' * 6,
    "self.assertEqual(first, second)\n" * 8,
)


class Cell(NamedTuple):
    """One measurement: what is generated, and by whom."""

    name: str
    work: Workload
    contenders: Sequence[Outrider]


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--suite", choices=("useless", "perfect", "mixed", "all"), default="all")
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--json", type=Path, default=Path("build/bench-control.json"))
    options = parser.parse_args()
    console = Console()
    suites = {"useless": _useless, "perfect": _perfect, "mixed": _mixed}
    results: dict[str, object] = {}
    for name, suite in suites.items():
        if options.suite not in (name, "all"):
            continue
        began = time.perf_counter()
        cells = []
        for cell in suite(options.new_tokens):
            result = _measure(cell, options.repetitions)
            console.print(_table(f"{name}, {cell.name}", result))
            cells.append(result)
        results[name] = {"seconds": time.perf_counter() - began, "cells": cells}
    report = {
        "machine": {"cores": os.cpu_count(), "processor": platform.machine()},
        "torch": torch.__version__,
        "repetitions": options.repetitions,
        "suites": results,
    }
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(report, indent=1) + "\n")
    console.print(f"written to {options.json}")


def _useless(new_tokens: int) -> Iterator[Cell]:
    with _target("benchmarks.scripted_drafter", []) as client:
        for streams, count in ((1, 12), (4, 24), (16, 64)):
            for sampled in (False, True):
                work = Workload(_code(count), streams, sampled, new_tokens)
                yield Cell(_describe(streams, sampled), work, _controlled(client))


def _perfect(new_tokens: int) -> Iterator[Cell]:
    with tempfile.TemporaryDirectory() as folder:
        texts = Path(folder, "texts.json")
        prompts = _code(16)
        with _target(None, []) as client:
            texts.write_text(json.dumps(_written(client, prompts, new_tokens)))
        with _target("benchmarks.scripted_drafter", ["--texts", str(texts)]) as client:
            for streams in (1, 4, 16):
                for sampled in (False, True):
                    work = Workload(prompts[: max(8, streams)], streams, sampled, new_tokens)
                    fixed = [_fixed(client, window, "remote") for window in (4, 8, 16)]
                    contenders = [*_controlled(client), *fixed]
                    yield Cell(_describe(streams, sampled), work, contenders)


def _mixed(new_tokens: int) -> Iterator[Cell]:
    prompts = [*_code(4), *_PROSE, *_REPETITION]
    random.Random(7).shuffle(prompts)
    with _target("outrider_draft", [*_DRAFTER, "--compile", "on"]) as client:
        for streams in (1, 8):
            for sampled in (False, True):
                for method in _METHODS:
                    name = f"{_describe(streams, sampled)}, {method}"
                    contenders = [
                        *_undrafted(client),
                        *(_fixed(client, window, method) for window in (1, 2, 4, 8)),
                        _scheduled(client, "heuristic", method),
                        _scheduled(client, "auto", method),
                    ]
                    work = Workload(prompts, streams, sampled, new_tokens)
                    yield Cell(name, work, contenders)


def _controlled(client: Client) -> list[Outrider]:
    return [
        *_undrafted(client),
        _scheduled(client, "heuristic", "remote"),
        _scheduled(client, "auto", "remote"),
    ]


def _undrafted(client: Client) -> list[Outrider]:
    speculation = SpeculationConfig(enabled=False)
    return [Outrider(name, client, speculation) for name in (_PLAIN, _PLAIN_AGAIN)]


def _scheduled(client: Client, schedule: str, method: Method) -> Outrider:
    options: dict[str, Any] = {"num_assistant_tokens_schedule": schedule}
    return Outrider(schedule, client, SpeculationConfig(method=method), options)


def _fixed(client: Client, window: int, method: Method) -> Outrider:
    options: dict[str, Any] = {
        "num_assistant_tokens_schedule": "constant",
        "num_assistant_tokens": window,
        "assistant_confidence_threshold": 0.0,
    }
    return Outrider(f"window {window}", client, SpeculationConfig(method=method), options)


def _written(client: Client, prompts: Sequence[str], new_tokens: int) -> list[list[int]]:
    """Prompt and output of each prompt, greedy and sampled."""
    plain = Outrider(_PLAIN, client, SpeculationConfig(enabled=False))
    return [
        [*client.tokenize(prompt), *token_ids]
        for sampled in (False, True)
        for prompt, token_ids in zip(
            prompts, plain.run(Workload(prompts, 8, sampled, new_tokens)).token_ids, strict=True
        )
    ]


@contextmanager
def _target(drafter: str | None, arguments: Sequence[str]) -> Iterator[Client]:
    """A target fed by a drafter, until the block ends."""
    with ExitStack() as stack:
        # Every repetition asks the same: what it remembered of the last would be all it needs.
        target = ["--model", str(TARGET_DIR), "--threads", "1", "--suffix-cache-tokens", "0"]
        if drafter is not None:
            target += ["--draft", stack.enter_context(Service(drafter, arguments)).address]
        service = stack.enter_context(compiled("outrider_target", target))
        yield stack.enter_context(Client(service.address, timeout=600))


def _code(count: int) -> list[str]:
    return [prompt.text for prompt in held_out_prompts()[:count]]


def _measure(cell: Cell, repetitions: int) -> dict[str, object]:
    for contender in cell.contenders:
        contender.run(cell.work)  # warm up, and let the controller learn
    outcomes: dict[str, list[Outcome]] = {contender.name: [] for contender in cell.contenders}
    for repetition in range(repetitions):
        # Nobody always comes after the same: what runs before leaves its traces.
        shift = repetition % len(cell.contenders)
        for contender in [*cell.contenders[shift:], *cell.contenders[:shift]]:
            outcomes[contender.name].append(contender.run(cell.work))
    speeds = {name: [o.num_tokens / o.seconds for o in runs] for name, runs in outcomes.items()}
    plain = [*map(statistics.fmean, zip(speeds[_PLAIN], speeds[_PLAIN_AGAIN], strict=True))]
    base = dict.fromkeys(speeds, plain) | {_PLAIN_AGAIN: speeds[_PLAIN]}
    plain_tokens = outcomes[_PLAIN][-1].token_ids
    rows = {
        name: {
            "tokens_per_second": statistics.median(speeds[name]),
            "ratios": (ratios := [a / b for a, b in zip(own, base[name], strict=True)]),
            "ratio": statistics.median(ratios),
            "acceptance": statistics.median(outcome.acceptance for outcome in outcomes[name]),
            "same_text": sum(
                a == b for a, b in zip(outcomes[name][-1].token_ids, plain_tokens, strict=True)
            ),
        }
        for name, own in speeds.items()
    }
    return {"cell": cell.name, "prompts": len(cell.work.prompts), "rows": rows}


def _describe(streams: int, sampled: bool) -> str:
    return f"{streams} streams, {'sampled' if sampled else 'greedy'}"


def _table(title: str, result: dict[str, object]) -> Table:
    table = Table(title=title, title_justify="left")
    for column in ("", "tokens/s", "ratio to plain", "accepted", "same text"):
        table.add_column(column, justify="right" if column else "left")
    rows = result["rows"]
    assert isinstance(rows, dict)
    for name, row in rows.items():
        table.add_row(
            name,
            f"{row['tokens_per_second']:.0f}",
            f"{row['ratio']:.3f}",
            f"{row['acceptance']:.0%}" if row["acceptance"] else "",
            f"{row['same_text']}/{result['prompts']}",
        )
    return table


if __name__ == "__main__":
    main()
