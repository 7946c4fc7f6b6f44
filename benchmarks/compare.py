"""`make bench`: Outrider against transformers on the shipped pair, as a table and as JSON.

All contenders take turns in each repetition, so that a busy machine is busy for all of them; a
ratio is the median of the ratios within a repetition.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
import transformers
from outrider_client import Client, SpeculationConfig
from outrider_demo import DRAFT_DIR, TARGET_DIR, held_out_prompts
from outrider_demo.processes import Service
from rich.console import Console
from rich.table import Table

from benchmarks.contenders import (
    Contender,
    Outcome,
    Outrider,
    Transformers,
    Workload,
    fastest_transformers_threads,
    speed_of,
)

_BASELINE = "transformers plain"
_HEURISTIC = (
    ("num_assistant_tokens", 5),
    ("num_assistant_tokens_schedule", "heuristic"),
    ("assistant_confidence_threshold", 0.4),
)
_OUR_HEURISTIC = {"num_assistant_tokens_schedule": "heuristic"}


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--prompts", type=int, default=8, help="prompts of each workload")
    parser.add_argument("--json", type=Path, default=Path("build/bench.json"))
    options = parser.parse_args()
    prompts = [prompt.text for prompt in held_out_prompts()[: options.prompts]]
    console = Console()
    with ExitStack() as stack:
        plain = Transformers(_BASELINE, TARGET_DIR)
        trial = Workload(prompts[:2], 1, False, options.new_tokens)
        threads = {
            "transformers": fastest_transformers_threads(plain, trial),
            "Outrider's target": _fastest_outrider_threads(trial),
        }
        contenders = _contenders(plain, stack, threads["Outrider's target"])
        results = []
        for streams in (1, 8):
            for sampled in (False, True):
                work = Workload(prompts, streams, sampled, options.new_tokens)
                result = _measure(contenders, work, options.repetitions)
                console.print(_table(result))
                results.append(result)
    report = {
        "machine": {"cores": os.cpu_count(), "processor": platform.machine()},
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "threads": threads,
        "repetitions": options.repetitions,
        "results": results,
    }
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(report, indent=1) + "\n")
    console.print(f"written to {options.json}")


def _outrider(stack: ExitStack, threads: int) -> Client:
    """A target with so many threads, fed by a drafter with one, until the stack is closed."""
    draft = stack.enter_context(
        Service("outrider_draft", ["--model", str(DRAFT_DIR), "--threads", "1"])
    )
    arguments = ["--model", str(TARGET_DIR), "--threads", str(threads), "--draft", draft.address]
    # Every repetition asks the same: what it remembered of the last would be all it needs.
    arguments += ["--suffix-cache-tokens", "0"]
    target = stack.enter_context(Service("outrider_target", arguments))
    return stack.enter_context(Client(target.address, timeout=600))


def _fastest_outrider_threads(work: Workload) -> int:
    """Threads with which the target is fastest here, beside its drafter."""
    speeds = {}
    for threads in range(1, (os.cpu_count() or 1) + 1):
        with ExitStack() as stack:
            contender = Outrider("trial", _outrider(stack, threads))
            speeds[threads] = speed_of(contender, work)
    return max(speeds, key=lambda threads: speeds[threads])


def _contenders(plain: Transformers, stack: ExitStack, threads: int) -> list[Contender]:
    """Everybody runs with as many threads as suit it best."""
    client = _outrider(stack, threads)
    return [
        plain,
        Transformers("transformers assisted (its defaults)", TARGET_DIR, DRAFT_DIR),
        Transformers("transformers assisted (heuristic)", TARGET_DIR, DRAFT_DIR, _HEURISTIC),
        Outrider("Outrider plain", client, SpeculationConfig(enabled=False)),
        Outrider("Outrider with drafter (default: lookup beside it)", client),
        Outrider("Outrider with drafter, schedule heuristic", client, options=_OUR_HEURISTIC),
        Outrider("Outrider with drafter alone", client, SpeculationConfig(method="remote")),
        Outrider(
            "Outrider with drafter alone, schedule heuristic",
            client,
            SpeculationConfig(method="remote"),
            _OUR_HEURISTIC,
        ),
        Outrider("Outrider with lookup alone", client, SpeculationConfig(method="prompt-lookup")),
    ]


def _measure(
    contenders: Sequence[Contender], work: Workload, repetitions: int
) -> dict[str, object]:
    for contender in contenders:
        contender.run(work)  # warm up
    outcomes: dict[str, list[Outcome]] = {contender.name: [] for contender in contenders}
    for _ in range(repetitions):
        for contender in contenders:
            outcomes[contender.name].append(contender.run(work))
    speeds = {n: [o.num_tokens / o.seconds for o in runs] for n, runs in outcomes.items()}
    rows = {
        name: {
            "tokens_per_second": statistics.median(speeds[name]),
            "tokens_per_second_runs": speeds[name],
            "ratio": statistics.median(
                own / base for own, base in zip(speeds[name], speeds[_BASELINE], strict=True)
            ),
            "acceptance": statistics.median(o.acceptance for o in runs),
            "accepted_by_drafter": runs[-1].accepted_by_drafter,
            "same_text_as_plain": _same(runs[-1], outcomes[_plain_of(name)][-1]),
        }
        for name, runs in outcomes.items()
    }
    return {"streams": work.streams, "sampled": work.sampled, "rows": rows}


def _plain_of(name: str) -> str:
    return "Outrider plain" if name.startswith("Outrider") else _BASELINE


def _same(left: Outcome, right: Outcome) -> str:
    """How many prompts got the same tokens from both."""
    same = sum(a == b for a, b in zip(left.token_ids, right.token_ids, strict=True))
    return f"{same}/{len(left.token_ids)}"


def _table(result: dict[str, object]) -> Table:
    mode = "sampled (T=1, top_p=0.9)" if result["sampled"] else "greedy"
    streams = "1 stream" if result["streams"] == 1 else f"{result['streams']} streams"
    table = Table(title=f"{streams}, {mode}", title_justify="left")
    for column in ("", "tokens/s", "ratio", "accepted", "same text as plain"):
        table.add_column(column, justify="right" if column else "left")
    rows = result["rows"]
    assert isinstance(rows, dict)
    for name, row in rows.items():
        table.add_row(
            name,
            f"{row['tokens_per_second']:.0f}",
            f"{row['ratio']:.2f}",
            f"{row['acceptance']:.0%}" if row["acceptance"] else "",
            row["same_text_as_plain"],
        )
    return table


if __name__ == "__main__":
    main()
