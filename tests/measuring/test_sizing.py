"""Capacity model and simulator: what can be known by hand, and what was measured."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tools.sizing.__main__ import enough
from tools.sizing.calibration import agreement_of, calibrated
from tools.sizing.capacity import capacity
from tools.sizing.deployment import Cost, Deployment
from tools.sizing.simulation import Simulation

ROOT = Path(__file__).resolve().parents[2]
MEASURED = json.loads((ROOT / "benchmarks" / "results" / "2026-11-26-sizing.json").read_text())
POINTS: list[dict[str, Any]] = MEASURED["points"]
WINDOW: int = MEASURED["window"]

ALONE = Deployment(
    targets=1,
    drafters=1,
    sequences=1,
    window=4,
    agreement=0.5,
    verify=Cost(0.040, 0.001),
    step=Cost(0.005, 0.001),
    round_trip=0.002,
)


def test_one_sequence_alone_goes_round_without_a_queue() -> None:
    cycle = 4 * 0.006 + 0.002 + 0.045
    tokens = (1 + 0.5 + 0.25 + 0.125 + 0.0625) / cycle
    for found in (capacity(ALONE), Simulation(ALONE, adaptive=False).run()):
        assert found.tokens_per_second == pytest.approx(tokens, rel=0.01)
        assert found.drafter_busy == pytest.approx(0.024 / cycle, rel=0.01)
        assert found.target_busy == pytest.approx(0.045 / cycle, rel=0.01)


def test_a_drafter_that_is_the_bottleneck_is_always_busy_and_sets_the_pace() -> None:
    """64 lines in a step, each a token: a sequence has a round for each four steps of all."""
    many = dataclasses.replace(
        ALONE, targets=8, sequences=8, verify=Cost(0.001, 0.0), step=Cost(0.001, 0.001)
    )
    found = Simulation(many, adaptive=False).run()
    assert found.drafter_busy > 0.95
    most = 64 / (4 * many.step.of(64)) * many.tokens_per_round
    assert 0.8 * most < found.tokens_per_second <= 1.05 * most
    assert capacity(many).tokens_per_second == pytest.approx(most, rel=0.15)


def test_a_step_has_no_more_lines_than_it_may() -> None:
    """64 sequences queue for 32 lines, so that each step is full."""
    many = dataclasses.replace(
        ALONE,
        targets=8,
        sequences=8,
        verify=Cost(0.001, 0.0),
        step=Cost(0.010, 0.0),
        max_lines=32,
    )
    full = 32 / (4 * 0.010) * many.tokens_per_round
    found = Simulation(many, adaptive=False).run()
    assert found.tokens_per_second == pytest.approx(full, rel=0.02)
    assert capacity(many).tokens_per_second == pytest.approx(full, rel=0.10)


def test_a_drafter_that_is_not_worth_waiting_for_costs_next_to_nothing() -> None:
    hopeless = dataclasses.replace(ALONE, sequences=8, agreement=0.3, step=Cost(0.05, 0.0))
    adaptive = Simulation(hopeless).run().tokens_per_second
    waiting = Simulation(hopeless, adaptive=False).run().tokens_per_second
    assert adaptive > 0.85 * hopeless.plain
    assert waiting < 0.5 * hopeless.plain


def test_enough_drafters_are_fewer_than_all_and_more_for_more_targets() -> None:
    one = dataclasses.replace(
        ALONE, sequences=16, agreement=0.8, step=Cost(0.002, 0.0008), verify=Cost(0.03, 0.0001)
    )
    for_one = enough(one, at_most=32)
    for_four = enough(dataclasses.replace(one, targets=4), at_most=32)
    assert 1 <= for_one < 16
    assert for_four > for_one


# --- measured


def of_point(point: dict[str, Any]) -> Deployment:
    """What the first two points say of a third; how well drafts agree is the text's own."""
    one = calibrated(POINTS[0], POINTS[1], window=WINDOW)
    return dataclasses.replace(
        one,
        targets=point["targets"],
        drafters=point["drafters"],
        sequences=point["sequences"],
        agreement=agreement_of(point["accepted_per_draft"], WINDOW),
    )


def test_several_points_were_measured_and_they_differ() -> None:
    speeds = [point["tokens_per_second"] for point in POINTS]
    assert len(POINTS) >= 8
    assert max(speeds) > 5 * min(speeds)
    assert {point["adaptive"] for point in POINTS} == {True, False}


@pytest.mark.parametrize(
    "point", POINTS, ids=lambda p: "-".join(str(value) for value in list(p.values())[:4])
)
def test_the_measured_points_are_reproduced(point: dict[str, Any]) -> None:
    deployment = of_point(point)
    simulated = Simulation(deployment, adaptive=point["adaptive"]).run()
    assert simulated.tokens_per_second == pytest.approx(point["tokens_per_second"], rel=0.25)
    if not point["adaptive"]:
        expected = capacity(deployment).tokens_per_second
        assert expected == pytest.approx(point["tokens_per_second"], rel=0.25)


# --- the command


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tools.sizing", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)


COSTS = ("--sequences", "8", "--verify-ms", "30", "--step-ms", "2", "--step-ms-per-line", "0.5")


def test_the_command_says_how_many_are_enough() -> None:
    done = run(*COSTS, "--agreement", "0.8")
    assert done.returncode == 0, done.stderr
    assert "enough: " in done.stdout
    assert "plain: 267 tokens/s" in done.stdout


def test_the_command_says_when_drafting_is_not_worth_it() -> None:
    done = run(*COSTS, "--agreement", "0.01")
    assert "not worth it" in done.stdout


@pytest.mark.parametrize(
    ("flag", "value"),
    [("--agreement", "1.5"), ("--sequences", "0"), ("--verify-ms", "-1"), ("--step-ms", "nan")],
)
def test_the_command_refuses_what_makes_no_sense(flag: str, value: str) -> None:
    done = run(*COSTS, "--agreement", "0.5", flag, value)
    assert done.returncode == 2
    assert f"argument {flag}: must be" in done.stderr
