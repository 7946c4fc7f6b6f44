"""Enumeration: after a correction that was guessed, the next draft is at the target already."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from draft.harness import ScriptedProposer
from target.test_run_ahead import WINDOW, decode
from target.virtual_link import VirtualLink

VOCAB = 1000


def truth(prefix: Sequence[int]) -> int:
    """Any text, but for the drafter's seldom a surprise."""
    return (7 * prefix[-1] + len(prefix)) % VOCAB


def often_right(tokens: Sequence[int]) -> tuple[int, float]:
    """The truth, four times of five."""
    own = truth(tokens)
    return (own if own % 5 else (own + 1) % VOCAB), -0.3


def knows_better(tokens: Sequence[int]) -> list[int]:
    """Its second guess is the truth where the first was not."""
    return [truth(tokens), (truth(tokens) + 2) % VOCAB]


def link(monkeypatch: pytest.MonkeyPatch, **options: object) -> VirtualLink:
    return VirtualLink(
        monkeypatch,
        ScriptedProposer(often_right, guess=knows_better),
        delay=0.005,
        draft_seconds=0.001,
        round_seconds=0.040,
        **options,  # type: ignore[arg-type]  # those it takes
    )


def test_a_correction_that_was_guessed_costs_no_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    line = link(monkeypatch)
    rounds = decode(line, truth, run_ahead=WINDOW + 2, fan_out=2, rounds=120)
    seen = line.fleet.foresight
    assert seen.corrected > 30
    assert seen.corrected_ready > 0.9 * seen.corrected
    late = rounds[10:]
    assert sum(waited == 0.0 for waited, _, _ in late) > 0.9 * len(late)
    assert sum(drafted for _, drafted, _ in late) > 0.9 * WINDOW * len(late)
    answers = {
        tuple(sample.labels.values()): sample.value
        for family in line.metrics.answers.collect()
        for sample in family.samples
        if sample.name.endswith("_total")
    }
    assert answers["corrected", "ready"] > 30, "the drafter counts as well"


def test_without_guesses_every_correction_costs_the_way_and_the_draft(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The control: the same, but for the fan-out."""
    line = link(monkeypatch)
    rounds = decode(line, truth, run_ahead=WINDOW + 2, fan_out=1, rounds=120)
    seen = line.fleet.foresight
    assert seen.corrected > 30
    assert seen.corrected_ready == 0
    assert sum(waited > 0.005 for waited, _, _ in rounds[10:]) > 30


@pytest.mark.parametrize("fan_out", [1, 2, 3])
@pytest.mark.parametrize("seed", range(4))
def test_lost_doubled_and_overtaken_frames_change_nothing(
    monkeypatch: pytest.MonkeyPatch, fan_out: int, seed: int
) -> None:
    """`decode` compares every token with the truth. No real stream does so; the link may end."""
    chance = random.Random(seed)

    def ways(delay: float) -> list[float]:
        copies = chance.choices([0, 1, 2], [1, 40, 4])[0]
        return [delay * chance.uniform(0.2, 6.0) for _ in range(copies)]

    line = link(monkeypatch, ways=ways)
    rounds = decode(line, truth, run_ahead=WINDOW + 2, fan_out=fan_out, rounds=150)
    assert sum(accepted for _, _, accepted in rounds) > 0
