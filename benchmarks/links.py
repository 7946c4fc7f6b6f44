"""`make bench-links`: pacing of drafts over links that take time, as ratios to plain decoding.

One target and one drafter, slowed to realistic steps (`slowed`), one line between them whose delay
is set (`slow_line`). Plain decoding and every pacing take turns on them; beside each ratio
stands what the closed-form model expects (`link_model`) from the agreement and the times measured
in the same run, for enumeration with the measured share of hits. The window is fixed and prompt
lookup is off, so that pacing alone differs.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import socket
import statistics
import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from outrider_client import Client, Completion, GenerationConfig, SpeculationConfig
from outrider_demo import DRAFT_DIR, TARGET_DIR, held_out_prompts
from outrider_demo.processes import Service
from rich.console import Console
from rich.table import Table

from benchmarks import link_model
from benchmarks.contenders import generate_together
from benchmarks.link_model import Deployment
from benchmarks.slow_line import SlowLine
from benchmarks.slowed import FLAG

WINDOW = 5
RUN_AHEAD = 2 * (WINDOW + 1)
FAN_OUT = 3
TREE_ROWS = 16

PACINGS: Mapping[str, SpeculationConfig] = {
    "plain": SpeculationConfig(enabled=False),
    "synchronous": SpeculationConfig(method="remote", pacing="synchronous"),
    "run-ahead": SpeculationConfig(method="remote", run_ahead=RUN_AHEAD),
    "enumeration": SpeculationConfig(method="remote", run_ahead=RUN_AHEAD, draft_fan_out=FAN_OUT),
    "tree": SpeculationConfig(
        method="remote", run_ahead=RUN_AHEAD, draft_fan_out=FAN_OUT, draft_tree_rows=TREE_ROWS
    ),
}


class Run(NamedTuple):
    """What one pacing made of the prompts, once."""

    tokens_per_second: float
    completions: Sequence[Completion]
    hit_rate: float
    """Share of the target's answers after which the next draft was there already."""
    draft_step: float
    """Seconds of a forward of the drafter."""


class MetricsPage:
    """The counters of a service."""

    def __init__(self) -> None:
        self.port = _free_port()

    def read(self) -> Counter[str]:
        """Values by name and labels, as they stand on the page."""
        url = f"http://127.0.0.1:{self.port}/metrics"
        with urllib.request.urlopen(url, timeout=10) as page:
            text = page.read().decode()
        found = re.findall(r"^(outrider_\S+) (\S+)$", text, re.M)
        return Counter({name: float(value) for name, value in found})


@dataclass
class Bench:
    """A target, its drafter, and the line between them."""

    client: Client
    line: SlowLine
    draft_metrics: MetricsPage
    target_metrics: MetricsPage
    options: argparse.Namespace
    prompts: Sequence[str] = field(default_factory=list)

    def run(self, pacing: str, *, sampled: bool, warm_up: bool = False) -> Run:
        """Generate all prompts with one pacing, or as few as keep all streams busy."""
        config = GenerationConfig(
            max_new_tokens=self.options.new_tokens,
            do_sample=sampled,
            num_assistant_tokens=WINDOW,
            num_assistant_tokens_schedule="constant",
            assistant_confidence_threshold=0.0,
        )
        draft_before, target_before = self.draft_metrics.read(), self.target_metrics.read()
        completions, seconds = generate_together(
            self.client,
            self.prompts[: self.options.streams] if warm_up else self.prompts,
            config,
            PACINGS[pacing],
            streams=self.options.streams,
        )
        draft = self.draft_metrics.read() - draft_before
        target = self.target_metrics.read() - target_before
        answers = {k: v for k, v in target.items() if k.startswith("outrider_draft_answers_total")}
        ready = sum(v for k, v in answers.items() if 'next="ready"' in k)
        forwards = max(1.0, draft["outrider_draft_forward_seconds_count"])
        return Run(
            sum(len(c.token_ids) for c in completions) / seconds,
            completions,
            hit_rate=ready / max(1.0, sum(answers.values())),
            draft_step=draft["outrider_draft_forward_seconds_sum"] / forwards,
        )


def main() -> None:
    """Measure, print the tables, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--step-delays-ms",
        type=_delays,
        nargs="+",
        default=[(10.0, 0.0), (30.0, 0.0), (30.0, 2.0)],
        metavar="TARGET+DRAFT",
        help="added to each forward of the target and of the drafter",
    )
    parser.add_argument("--link-delays-ms", type=float, nargs="+", default=[0.0, 1.0, 5.0, 20.0])
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--prompts", type=int, default=2)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--streams", type=int, default=1, help="prompts served at a time")
    parser.add_argument("--json", type=Path, default=Path("build/bench-links.json"))
    options = parser.parse_args()
    console = Console(width=100)
    results = []
    for result in _measure_all(options):
        console.print(_table(result))
        results.append(result)
    report = {
        "machine": {"cores": os.cpu_count()},
        "window": WINDOW,
        "run_ahead": RUN_AHEAD,
        "fan_out": FAN_OUT,
        "tree_rows": TREE_ROWS,
        **{
            name: vars(options)[name]
            for name in ("repetitions", "prompts", "new_tokens", "streams")
        },
        "results": results,
    }
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(report, indent=1) + "\n")
    console.print(f"written to {options.json}")


def _measure_all(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    for step_delay, draft_delay in options.step_delays_ms:
        with ExitStack() as stack:
            bench = _set_up(stack, options, step_delay, draft_delay)
            for link_delay in options.link_delays_ms:
                bench.line.delay = link_delay / 1000
                for sampled in (False, True):
                    yield {
                        "step_delay_ms": step_delay,
                        "draft_step_delay_ms": draft_delay,
                        "link_delay_ms": link_delay,
                        "sampled": sampled,
                        **_measure(bench, sampled=sampled),
                    }


def _delays(text: str) -> tuple[float, float]:
    target, _, draft = text.partition("+")
    return float(target), float(draft or 0)


def _set_up(
    stack: ExitStack, options: argparse.Namespace, step_delay: float, draft_delay: float
) -> Bench:
    of_draft, of_target = MetricsPage(), MetricsPage()
    alone = ["--threads", "1", "--compile", "on", "--metrics-port"]
    draft = ["--model", str(DRAFT_DIR), *alone, str(of_draft.port)]
    draft += ["draft", FLAG, str(draft_delay)]
    drafter = stack.enter_context(Service("benchmarks.slowed", draft))
    line = stack.enter_context(SlowLine(drafter.address))
    target = ["--model", str(TARGET_DIR), "--draft", line.address, *alone]
    target += [str(of_target.port), "target", FLAG, str(step_delay)]
    service = stack.enter_context(Service("benchmarks.slowed", target))
    client = stack.enter_context(Client(service.address, timeout=600))
    prompts = [prompt.text for prompt in held_out_prompts()[: options.prompts]]
    return Bench(client, line, of_draft, of_target, options, prompts)


def _measure(bench: Bench, *, sampled: bool) -> dict[str, Any]:
    """All pacings in turn, at the line's present delay."""
    runs: dict[str, list[Run]] = {pacing: [] for pacing in PACINGS}
    for pacing in PACINGS:
        if pacing != "plain":
            bench.run(pacing, sampled=sampled, warm_up=True)  # it learns how long answers take now
    for _ in range(bench.options.repetitions):
        for pacing, done in runs.items():
            done.append(bench.run(pacing, sampled=sampled))
    plain = runs["plain"]
    deployment = Deployment(
        agreement=_agreement(runs["synchronous"][-1].completions),
        window=WINDOW,
        verify=bench.options.streams / statistics.median(run.tokens_per_second for run in plain),
        draft_step=statistics.median(run.draft_step for run in runs["synchronous"]),
        round_trip=2 * bench.line.delay,
    )
    rows = {}
    for pacing, done in runs.items():
        ratios = [
            own.tokens_per_second / base.tokens_per_second
            for own, base in zip(done, plain, strict=True)
        ]
        hit_rate = statistics.median(run.hit_rate for run in done)
        rows[pacing] = {
            "tokens_per_second": statistics.median(run.tokens_per_second for run in done),
            "ratio": statistics.median(ratios),
            "ratio_runs": ratios,
            "ratio_expected": _expected(pacing, deployment, hit_rate),
            "hit_rate": hit_rate,
            "draft_step": statistics.median(run.draft_step for run in done),
            "same_tokens_as_plain": all(
                [c.token_ids for c in own.completions] == [c.token_ids for c in base.completions]
                for own, base in zip(done, plain, strict=True)
            ),
            **_rounds(done[-1].completions),
        }
    return {"deployment": deployment._asdict(), "rows": rows}


def _expected(pacing: str, deployment: Deployment, hit_rate: float) -> float | None:
    """None for trees: what they accept beside the chain is not in the model."""
    if pacing == "tree":
        return None
    if pacing == "plain":
        return 1.0
    if pacing == "synchronous":
        return link_model.synchronous(deployment)
    if pacing == "run-ahead":
        hit_rate = link_model.run_ahead_hit_rate(deployment)
    return link_model.prepared(deployment, hit_rate=hit_rate)


def _agreement(completions: Sequence[Completion]) -> float:
    """Accepted tokens per token that was compared: all accepted ones and each first refusal."""
    accepted = sum(c.speculation.num_accepted_tokens for c in completions)
    rounds = sum(c.speculation.num_drafts for c in completions)
    whole = sum(sum(c.speculation.num_accepted_tokens_per_pos[WINDOW - 1 :]) for c in completions)
    return accepted / max(1, accepted + rounds - whole)


def _rounds(completions: Sequence[Completion]) -> dict[str, float]:
    statistic = [completion.speculation for completion in completions]
    rounds = sum(each.num_rounds for each in statistic)
    return {
        "tokens_per_round": sum(len(c.token_ids) for c in completions) / max(1, rounds),
        "plain_rounds": sum(each.num_plain_rounds for each in statistic) / max(1, rounds),
    }


def _table(result: Mapping[str, Any]) -> Table:
    mode = "sampled" if result["sampled"] else "greedy"
    deployment = result["deployment"]
    title = (
        f"step {1000 * deployment['verify']:.1f} ms, draft step "
        f"{1000 * deployment['draft_step']:.1f} ms, link {result['link_delay_ms']:g} ms one way, "
        f"{mode}, agreement {deployment['agreement']:.2f}"
    )
    table = Table(title=title, title_justify="left")
    for column in (
        "",
        "tokens/s",
        "ratio",
        "expected",
        "tokens/round",
        "plain rounds",
        "hits",
        "same",
    ):
        table.add_column(column, justify="right" if column else "left")
    for name, row in result["rows"].items():
        table.add_row(
            name,
            f"{row['tokens_per_second']:.0f}",
            f"{row['ratio']:.2f}",
            "" if row["ratio_expected"] is None else f"{row['ratio_expected']:.2f}",
            f"{row['tokens_per_round']:.2f}",
            f"{row['plain_rounds']:.0%}",
            f"{row['hit_rate']:.0%}",
            "yes" if row["same_tokens_as_plain"] else "NO",
        )
    return table


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


if __name__ == "__main__":
    main()
