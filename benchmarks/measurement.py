"""Contenders take turns at a workload, so that a busy machine is busy for all of them.

What is compared are ratios within a repetition, and of these the median.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from benchmarks.contenders import Outcome, Workload
from benchmarks.peers.process import PeerFailed
from benchmarks.tuning import Tuned


@dataclass
class Field:
    """Who takes part, and who cannot."""

    contenders: list[Tuned]
    absent: dict[str, str] = field(default_factory=dict)
    """Why each of the others is missing, by name."""
    memory: Mapping[str, Callable[[], float]] = field(default_factory=dict)
    """What tells a contender's peak memory in megabytes, by name."""

    def tune(self, trial: Workload) -> None:
        """Every contender chooses its settings."""
        for contender in list(self.contenders):
            self._attempt(contender, partial(contender.tune, trial))

    def measure(self, work: Workload, repetitions: int) -> dict[str, Any]:
        """Run the workload in turns; returns a cell of the report, rows by contender."""
        taking_part = [each for each in self.contenders if each.samples or not work.sampled]
        for contender in taking_part:
            self._attempt(contender, partial(contender.run, work))  # warm up
        outcomes: dict[str, list[Outcome]] = {}
        for repetition in range(repetitions):
            # Nobody always comes after the same: what ran before leaves its traces.
            shift = repetition % max(1, len(taking_part))
            for contender in [*taking_part[shift:], *taking_part[:shift]]:
                outcome = self._attempt(contender, partial(contender.run, work))
                if outcome is not None:
                    outcomes.setdefault(contender.name, []).append(outcome)
        whole = {each.name: outcomes[each.name] for each in taking_part if each in self.contenders}
        rows = {name: self._row(name, runs, whole) for name, runs in whole.items()}
        return {**describe(work), "rows": rows, "absent": dict(self.absent)}

    def _attempt(self, contender: Tuned, step: Callable[[], Any]) -> Any:
        """A peer that fails is missing from then on."""
        if contender not in self.contenders:
            return None
        try:
            return step()
        except PeerFailed as error:
            self.contenders.remove(contender)
            self.absent[contender.name] = f"failed: {error}"
            return None

    def _row(
        self, name: str, runs: Sequence[Outcome], everybody: Mapping[str, Sequence[Outcome]]
    ) -> dict[str, Any]:
        arrivals = [arrival for run in runs for arrival in run.arrivals]
        steps = [
            1000 * (arrival.last - arrival.first) / (len(ids) - 1)
            for run in runs
            for arrival, ids in zip(run.arrivals, run.token_ids, strict=True)
            if len(ids) > 1
        ]
        speeds = [run.num_tokens / run.seconds for run in runs]
        reference = next(iter(everybody.values()))[-1].token_ids
        return {
            "setting": _setting(next(each for each in self.contenders if each.name == name)),
            "tokens_per_second": statistics.median(speeds),
            "tokens_per_second_runs": speeds,
            "time_to_first_token_ms": _quantiles([1000 * each.first for each in arrivals]),
            "time_per_output_token_ms": _quantiles(steps),
            "acceptance": statistics.median(run.acceptance for run in runs),
            "accepted_by_drafter": runs[-1].accepted_by_drafter,
            "peak_memory_mb": self.memory[name]() if name in self.memory else None,
            "same_text": sum(a == b for a, b in zip(runs[-1].token_ids, reference, strict=True)),
        }


def describe(work: Workload) -> dict[str, Any]:
    """What was generated, for the report."""
    return {
        "streams": work.streams,
        "temperature": work.temperature if work.sampled else 0.0,
        "prompts": len(work.prompts),
        "new_tokens": work.new_tokens,
    }


def ratio(cell: Mapping[str, Any], contender: str, base: str) -> float | None:
    """How many times as fast as the other, median over repetitions; None if one is missing."""
    rows = cell["rows"]
    if contender not in rows or base not in rows:
        return None
    own, other = (rows[name]["tokens_per_second_runs"] for name in (contender, base))
    ratios: list[float] = [a / b for a, b in zip(own, other, strict=True)]
    return statistics.median(ratios)


def _quantiles(values: Sequence[float]) -> dict[str, float] | None:
    if not values:
        return None
    ordered = sorted(values)
    return {
        name: ordered[min(len(ordered) - 1, int(share * len(ordered)))]
        for name, share in (("p50", 0.5), ("p99", 0.99))
    }


def _setting(contender: Tuned) -> Any:
    """What was chosen: a peer's setting, or the name of ours."""
    # Only a peer has one: what it means is its engine's own affair.
    return getattr(contender.chosen, "setting", contender.chosen.name)
