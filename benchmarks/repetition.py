"""`make bench-repetition`: what remembered outputs and predictions bring where requests repeat.

As agents do: the same tasks come again and again, each time behind another heading and with other
random numbers, and the answers are much alike. Every contender serves every task in turn; each has
a salt of its own, so that it remembers its own outputs alone. `forgetting` gives each request
another salt: the same drafters, nothing remembered. `predicted` is told the answer of the pass
before.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from outrider_client import Client, Completion, GenerationConfig, SpeculationConfig
from outrider_demo import DRAFT_DIR, TARGET_DIR, held_out_prompts
from outrider_demo.processes import Service
from rich.console import Console
from rich.table import Table

CONTENDERS = ("plain", "prompt lookup", "forgetting", "remembering", "predicted")


@dataclass
class Tally:
    """What a contender did in one pass."""

    seconds: float = 0.0
    completions: list[Completion] = field(default_factory=list)

    def add(self, completion: Completion, seconds: float) -> None:
        """Count one answer."""
        self.completions.append(completion)
        self.seconds += seconds

    @property
    def tokens_per_second(self) -> float:
        """Of all answers."""
        return sum(len(each.token_ids) for each in self.completions) / self.seconds

    def row(self, plain: Tally) -> dict[str, Any]:
        """The figures, beside those of plain decoding."""
        accepted: Counter[str] = Counter()
        for completion in self.completions:
            for drafter in completion.speculation.drafters:
                accepted[drafter.method] += drafter.num_accepted_tokens
        statistics = [each.speculation for each in self.completions]
        drafted = sum(each.num_draft_tokens for each in statistics)
        rounds = sum(each.num_rounds for each in statistics)
        return {
            "ratio": self.tokens_per_second / plain.tokens_per_second,
            "tokens_per_round": sum(len(each.token_ids) for each in self.completions) / rounds,
            "acceptance": sum(accepted.values()) / max(1, drafted),
            "accepted_by_drafter": dict(accepted),
            "same_tokens_as_plain": [each.token_ids for each in self.completions]
            == [each.token_ids for each in plain.completions],
        }


def main() -> None:
    """Measure, print the tables, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--passes", type=int, default=3)
    parser.add_argument("--tasks", type=int, default=10)
    parser.add_argument("--new-tokens", type=int, default=96)
    parser.add_argument("--temperature", type=float, default=0.3)
    parser.add_argument("--without-draft-model", action="store_true")
    parser.add_argument("--json", type=Path, default=Path("build/bench-repetition.json"))
    options = parser.parse_args()
    passes = _measure(options)
    console = Console()
    for number, rows in enumerate(passes):
        console.print(_table(f"pass {number + 1}", rows))
    report = {
        "machine": {"cores": os.cpu_count()},
        **{name: value for name, value in vars(options).items() if name != "json"},
        "passes": passes,
    }
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(report, indent=1) + "\n")
    console.print(f"written to {options.json}")


def _measure(options: argparse.Namespace) -> list[dict[str, dict[str, Any]]]:
    arguments = ["--model", str(TARGET_DIR), "--threads", "1"]
    if options.without_draft_model:
        return _serve(arguments, options)
    with Service("outrider_draft", ["--model", str(DRAFT_DIR), "--threads", "1"]) as drafter:
        return _serve([*arguments, "--draft", drafter.address], options)


def _serve(
    arguments: Sequence[str], options: argparse.Namespace
) -> list[dict[str, dict[str, Any]]]:
    tasks = [prompt.text for prompt in held_out_prompts()[: options.tasks]]
    before: dict[str, Sequence[int]] = {}
    passes = []
    with (
        Service("outrider_target", arguments) as target,
        Client(target.address, timeout=600) as client,
    ):
        client.generate(tasks[0], GenerationConfig(max_new_tokens=64))
        for number in range(options.passes):
            tallies = {name: Tally() for name in CONTENDERS}
            for turn, task in enumerate(tasks):
                first = turn % len(CONTENDERS)
                for name in (*CONTENDERS[first:], *CONTENDERS[:first]):
                    salt = f"{number} {turn}" if name == "forgetting" else name
                    speculation = _speculation(name, salt, before.get(task))
                    started = time.perf_counter()
                    completion = client.generate(
                        f"# Task {turn}, attempt {number}\n{task}",
                        _config(options),
                        seed=number,
                        speculation=speculation,
                    )
                    tallies[name].add(completion, time.perf_counter() - started)
                before[task] = completion.token_ids
            passes.append({name: each.row(tallies["plain"]) for name, each in tallies.items()})
    return passes


def _config(options: argparse.Namespace) -> GenerationConfig:
    return GenerationConfig(
        max_new_tokens=options.new_tokens,
        do_sample=options.temperature > 0,
        temperature=options.temperature or None,
        top_k=0,
    )


def _speculation(name: str, salt: str, prediction: Sequence[int] | None) -> SpeculationConfig:
    if name == "plain":
        return SpeculationConfig(enabled=False)
    if name == "prompt lookup":
        return SpeculationConfig(method="prompt-lookup")
    return SpeculationConfig(
        method="combined",
        cache_salt=salt,
        prediction_token_ids=prediction if name == "predicted" else None,
    )


def _table(title: str, rows: Mapping[str, Mapping[str, Any]]) -> Table:
    table = Table(title=title, title_justify="left")
    for column in ("", "ratio", "tokens/round", "acceptance", "accepted, by drafter", "same"):
        table.add_column(column, justify="right" if column else "left")
    for name, row in rows.items():
        table.add_row(
            name,
            f"{row['ratio']:.2f}",
            f"{row['tokens_per_round']:.2f}",
            f"{row['acceptance']:.2f}",
            ", ".join(f"{who} {count}" for who, count in row["accepted_by_drafter"].items()),
            "yes" if row["same_tokens_as_plain"] else "NO",
        )
    return table


if __name__ == "__main__":
    main()
