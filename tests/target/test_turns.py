"""Who is admitted next: callers take turns, whoever lost a place gets it back first."""

from __future__ import annotations

import random
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
from outrider_target.engine.turns import Turns


def sequence(
    caller: str, name: str = "", *, preempted: bool = False, width: int = 1, replay: bool = False
) -> Any:
    return SimpleNamespace(
        request=SimpleNamespace(is_replay=replay),
        name=name or caller,
        num_preemptions=int(preempted),
        strategy=SimpleNamespace(width=width),
        state=SimpleNamespace(caller=caller),
    )


def name_of(sequence: Any) -> str:
    return str(sequence.name)


def names(waiting: list[Any], running: list[Any] = []) -> list[str]:  # noqa: B006 - only read
    return [name_of(one) for one in Turns().order(waiting, running)]


def test_one_caller_is_served_in_the_order_of_arrival() -> None:
    assert names([sequence("", name) for name in "abcd"]) == list("abcd")


def test_a_flood_lets_others_through() -> None:
    flood = [sequence("flood", f"f{i}") for i in range(4)]
    assert names([*flood, sequence("anna"), sequence("bert")]) == [
        "f0", "anna", "bert", "f1", "f2", "f3",
    ]  # fmt: skip


def test_what_runs_counts() -> None:
    waiting = [sequence("flood", "f1"), sequence("flood", "f2"), sequence("anna")]
    assert names(waiting, [sequence("flood")]) == ["anna", "f1", "f2"]
    running = [sequence("flood"), sequence("anna", width=4)]
    assert names(waiting, running) == ["f1", "f2", "anna"]


def test_who_lost_a_place_comes_first_and_counts_as_running() -> None:
    lost = sequence("flood", "lost", preempted=True)
    waiting = [lost, sequence("flood", "f1"), sequence("anna")]
    assert names(waiting) == ["lost", "anna", "f1"]


def test_a_replay_comes_last_and_counts_against_nobody() -> None:
    replays = [sequence("", "r0", preempted=True, replay=True), sequence("", "r1", replay=True)]
    waiting = [*replays, sequence("anna", "a"), sequence("", "nobody")]
    running = [sequence("", "r2", width=9, replay=True), sequence("anna")]
    assert names(waiting, running) == ["nobody", "a", "r0", "r1"]


def test_with_room_for_one_alone_callers_alternate() -> None:
    turns = Turns()
    waiting = [*(sequence("flood", f"f{i}") for i in range(3)), sequence("anna"), sequence("bert")]
    admitted = []
    while waiting:
        order = turns.order(tuple(waiting), ())
        admitted.append(next(order))
        next(order, None)  # there is no room for it
        waiting.remove(admitted[-1])
    assert [name_of(one) for one in admitted] == ["f0", "anna", "bert", "f1", "f2"]


@pytest.mark.parametrize("seed", range(20))
def test_nobody_is_left_out_and_no_caller_is_ahead_by_more_than_one(seed: int) -> None:
    chance = random.Random(seed)
    waiting = [sequence(chance.choice("abc"), str(i)) for i in range(30)]
    order = list(Turns().order(waiting, []))
    assert sorted(map(id, order)) == sorted(map(id, waiting))
    left, served = Counter(one.state.caller for one in waiting), Counter[str]()
    for one in order:
        caller = one.state.caller
        assert all(served[caller] <= served[other] for other in left if left[other])
        served[caller] += 1
        left[caller] -= 1
    for caller in "abc":
        own = [int(name_of(one)) for one in order if one.state.caller == caller]
        assert own == sorted(own)
