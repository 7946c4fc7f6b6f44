"""The draft temperature is what has agreed most, and never anything else for want of evidence."""

from __future__ import annotations

import random
from collections import Counter

from outrider_target.drafting.pricing.tempering import CHOICES, USUAL, DraftTemperatures


def serve(temperatures: DraftTemperatures, agreement: dict[float, float], sessions: int) -> None:
    """Sessions of 40 drafts, whose tokens agree as often as their temperature lets them."""
    chance = random.Random(3)
    for _ in range(sessions):
        value = temperatures.choose(2)
        for _ in range(40):
            agreed = 0
            while agreed < 4 and chance.random() < agreement[value]:
                agreed += 1
            temperatures.observe(2, value, agreed=agreed, judged=min(agreed + 1, 4))


def test_the_value_that_agrees_most_is_found() -> None:
    temperatures = DraftTemperatures()
    serve(temperatures, {0.7: 0.75, 0.85: 0.68, 1.0: 0.6, 1.2: 0.4}, sessions=200)
    assert temperatures.best(2) == 0.7
    chosen = Counter(temperatures.choose(2) for _ in range(80))
    assert chosen[0.7] > 70
    assert set(chosen) == set(CHOICES), "the others are tried now and then"
    assert temperatures.best(1) == USUAL, "another class knows nothing of it"


def test_equal_values_leave_the_usual_one() -> None:
    temperatures = DraftTemperatures()
    serve(temperatures, dict.fromkeys(CHOICES, 0.6), sessions=400)
    assert temperatures.best(2) == USUAL


def test_without_evidence_and_without_noise_it_is_the_usual_one() -> None:
    temperatures = DraftTemperatures()
    assert [temperatures.choose(2) for _ in range(7)] == [USUAL] * 7
    assert {temperatures.choose(0) for _ in range(100)} == {USUAL}
