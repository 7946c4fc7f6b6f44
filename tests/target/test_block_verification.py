"""Drafts accepted by ratio write the target's distribution, to the last digit, by enumeration."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from outrider_target.decoding.block_verification import Place, verify_block
from target.law_of_rounds import (
    Rule,
    World,
    by_block,
    by_block_with_early_end,
    by_block_with_token_residual,
    by_token,
    distance,
)

HABITS: dict[str, dict[str, Any]] = {
    "one token at a time": {"window": 1},
    "windows": {},
    "a whole text at once": {"window": 4, "num_tokens": 5},
    "run ahead": {"window": 2, "run_ahead": 2, "num_tokens": 5},
    "stops by itself": {"stops": True, "run_ahead": 1},
    "knows all tokens": {"support": 3, "window": 2, "run_ahead": 1},
    "draws now and then": {"certain": 0.5, "run_ahead": 1},
    "draws nothing": {"certain": 1.0},
}


@pytest.mark.parametrize("rule", [by_block, by_token])
@pytest.mark.parametrize("habits", HABITS)
def test_the_law_of_the_text_is_the_targets_own(rule: Rule, habits: str) -> None:
    accepted = 0.0
    for seed in range(4):
        world = World(seed, rule, **HABITS[habits])
        assert distance(world.law(), world.plain_law()) < 1e-12
        accepted += world.expected_accepted()
    assert accepted > 0.1


@pytest.mark.parametrize(
    "wrong",
    [
        {"rule": by_block_with_early_end},
        {"rule": by_block_with_token_residual},
        {"drops_unlikely": True},
        {"tells_another": True},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_what_would_be_wrong_shows(wrong: dict[str, Any]) -> None:
    distances = []
    for seed in range(4):
        world = World(seed, **{"window": 3, "num_tokens": 5, **wrong})
        distances.append(distance(world.law(), world.plain_law()))
    assert max(distances) > 1e-4


@pytest.mark.parametrize("habits", HABITS)
def test_a_block_keeps_no_less_than_token_by_token(habits: str) -> None:
    gains = []
    for seed in range(20):
        block, token = (
            World(seed, by_block, **HABITS[habits]),
            World(seed, by_token, **HABITS[habits]),
        )
        gains.append(block.expected_accepted() - token.expected_accepted())
    assert min(gains) > -1e-12
    if HABITS[habits].get("window", 3) > 1 and HABITS[habits].get("certain", 0) < 1:
        assert max(gains) > 1e-3
    else:
        assert max(gains) < 1e-12, "one token, and certain ones: the two rules are one"


def place(draft: list[float], target: list[float], drawn: int = 0) -> Place:
    return Place(drawn, np.array(draft), np.array(target))


def test_by_hand() -> None:
    # Twice as probable for the target: kept for certain. Half as probable: kept half of the time.
    likely, unlikely = place([0.4, 0.6], [0.8, 0.2]), place([0.6, 0.4], [0.3, 0.7])
    assert verify_block([likely], [0.99]) == (1, 1.0)
    assert verify_block([unlikely], [0.49]) == (1, 0.5)
    assert verify_block([unlikely], [0.51]) == (0, 1.0)
    assert verify_block([], []) == (0, 1.0)


def test_a_rejected_token_is_never_drawn_again() -> None:
    # So what stands behind it in the tree, which the verification has looked at, is never reused.
    for seed in range(20):
        world = World(seed, window=3)
        for _, chain in world.drafts((), ()):
            for kept, (probability, own) in enumerate(world.outcomes((), chain)):
                if probability and kept < len(chain):
                    assert own[chain[kept]] == 0


def test_a_block_outlives_the_failure_of_its_first_token() -> None:
    draft = [place([0.8, 0.2], [0.4, 0.6]), place([0.25, 0.75], [0.5, 0.5])]
    # p_1 = 1/2, p_2 = min(1, 1/2 * 2) = 1; h_1 = (1/4 * 0) / (0 + 1/2) = 0.
    assert verify_block(draft, [0.9, 0.99]) == (2, 1.0)


@given(data=st.data(), uniform=st.floats(1e-9, 1 - 1e-9))
def test_an_impossible_token_is_never_kept(data: st.DataObject, uniform: float) -> None:
    weights = data.draw(st.lists(st.integers(1, 99), min_size=1, max_size=5))
    drawn = data.draw(st.integers(0, len(weights) - 1))
    draft = np.array(weights) / sum(weights)
    target = np.zeros(len(weights))
    assert verify_block([Place(drawn, draft, target)], [uniform]).num_accepted == 0


@given(scale=st.floats(1e-6, 1.0), uniform=st.floats(1e-9, 1 - 1e-9))
def test_what_both_say_alike_is_always_kept(scale: float, uniform: float) -> None:
    same = place([scale / 2, 1 - scale / 2], [scale / 2, 1 - scale / 2])
    assert verify_block([same] * 3, [uniform] * 3) == (3, 1.0)
