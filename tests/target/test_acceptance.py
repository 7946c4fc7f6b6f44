"""The rule of agreement, the windows and the stopping rules, by hand-computable cases."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from outrider_runtime.sampling_parameters import SamplingParameters
from outrider_target.decoding.acceptance import accept
from outrider_target.decoding.stopping import StopCheck
from outrider_target.drafting.window import Window
from outrider_target.requests.request import FinishReason

tokens = st.lists(st.integers(0, 3), max_size=8)


@given(draft=tokens, data=st.data())
def test_what_is_emitted_is_always_a_prefix_of_the_targets_own_tokens(
    draft: list[int], data: st.DataObject
) -> None:
    own = data.draw(st.lists(st.integers(0, 3), min_size=len(draft) + 1, max_size=len(draft) + 1))
    decided, num_accepted = accept(draft, own)
    assert decided == own[: num_accepted + 1]
    assert decided[:num_accepted] == draft[:num_accepted]
    if num_accepted < len(draft):
        assert draft[num_accepted] != own[num_accepted], "stopped at the first disagreement"


def test_full_acceptance_brings_the_bonus_token() -> None:
    assert accept([1, 2], [1, 2, 3]) == ([1, 2, 3], 2)


def test_a_match_behind_a_mismatch_is_worth_nothing() -> None:
    assert accept([1, 9, 3], [1, 2, 3, 4]) == ([1, 2], 1)


def test_plain_decoding_is_acceptance_of_an_empty_draft() -> None:
    assert accept([], [4]) == ([4], 0)


def test_the_constant_schedule_keeps_its_window() -> None:
    window = Window(5, "constant", 16)
    window.observe(5, 5)
    window.observe(5, 0)
    assert window.size == 5


@pytest.mark.parametrize("schedule", ["heuristic", "heuristic_transient"])
def test_the_heuristic_schedules_add_two_and_take_one(schedule: str) -> None:
    window = Window(5, schedule, 8)
    window.observe(5, 5)
    assert window.size == 7
    window.observe(3, 3)
    assert window.size == 8, "never above the maximum"
    for _ in range(20):
        window.observe(8, 2)
    assert window.size == 1, "never below one"
    window.observe(0, 0)
    assert window.size == 1, "a plain round teaches nothing"


def test_the_window_leaves_room_for_the_rounds_own_token() -> None:
    window = Window(5, "constant", 16)
    assert window.next_size(length=10, max_length=20) == 5
    assert window.next_size(length=17, max_length=20) == 2
    assert window.next_size(length=19, max_length=20) == 0


def test_the_last_token_may_both_end_the_text_and_reach_the_limit() -> None:
    check = StopCheck(SamplingParameters(eos_token_ids=(2,), max_length=5), None)
    assert check.push(7, 4) is None
    limit = check.push(7, 5)
    assert limit is not None
    assert limit.reason is FinishReason.LENGTH
    end = check.push(2, 5)
    assert end is not None
    assert (end.reason, end.stop_token_id) == (FinishReason.STOP, 2)
