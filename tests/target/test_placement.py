"""Which link a session goes to: the one that will answer soonest, never one that is silent."""

from __future__ import annotations

from collections.abc import Sequence
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st
from outrider_target.drafting.remote.link_state import LinkState
from outrider_target.drafting.remote.patience import LinkPace
from outrider_target.drafting.remote.placement import choose, move


def link(
    sessions: int, latency: float = 0.0, *, unanswered: int = 0, capacity: int = 99
) -> LinkState:
    made = LinkState(0, lambda _: None, lambda _: None, up=True, capacity=capacity)
    made.pace = LinkPace(latency=latency, unanswered=unanswered)
    made.sessions = {number: mock.Mock() for number in range(sessions)}
    return made


def settle(links: Sequence[LinkState]) -> list[int]:
    """Move until nothing is worth moving; the sessions of each link."""
    for _ in range(1000):
        if (moved := move(links)) is None:
            return [len(one.sessions) for one in links]
        number = max(moved.source.sessions)
        session = moved.source.sessions.pop(number)
        moved.destination.sessions[max(moved.destination.sessions, default=0) + 1] = session
    pytest.fail("sessions move for ever")


def test_a_link_twice_as_slow_takes_half_as_many() -> None:
    links = [link(0, 0.001), link(0, 0.002)]
    for _ in range(30):
        chosen = choose(links)
        assert chosen is not None
        chosen.sessions[len(chosen.sessions)] = mock.Mock()
    assert [len(one.sessions) for one in links] == [20, 10]


def test_a_link_that_has_not_answered_yet_is_taken_for_as_good_as_the_best() -> None:
    fresh = link(0)
    assert choose([link(1, 0.001), fresh, link(0, 0.005)]) is fresh


def test_a_silent_link_is_taken_only_where_there_is_no_other() -> None:
    silent, busy = link(0, 0.001, unanswered=3), link(50, 0.01)
    assert choose([silent, busy]) is busy
    assert choose([silent]) is silent


def test_sessions_leave_a_silent_link() -> None:
    assert settle([link(7, 0.001, unanswered=3), link(2, 0.01)]) == [0, 9]
    assert settle([link(7, 0.001, unanswered=3), link(2, 0.01, unanswered=5)]) == [7, 2]


def test_a_link_that_comes_back_gets_its_share() -> None:
    assert settle([link(16, 0.001), link(0)]) == [11, 5]


def test_a_single_session_stays_where_it_is() -> None:
    assert settle([link(1, 0.001), link(0)]) == [1, 0]


def test_a_full_link_takes_no_more() -> None:
    assert settle([link(9, 0.001), link(2, 0.001, capacity=3)]) == [8, 3]


@given(
    st.lists(
        st.tuples(st.integers(0, 30), st.floats(0.0001, 1.0), st.integers(0, 5)),
        min_size=1,
        max_size=5,
    )
)
def test_moving_ends_and_loses_nobody(states: list[tuple[int, float, int]]) -> None:
    links = [link(n, latency, unanswered=missed) for n, latency, missed in states]
    assert sum(settle(links)) == sum(n for n, _, _ in states)
