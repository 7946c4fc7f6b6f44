"""Sessions on draft links: trees, waiting, failover, misbehaviour, loss of memory."""

from __future__ import annotations

import dataclasses
import time

import pytest
from outrider_runtime.draft_tree import Proposal
from outrider_target.drafting.drafter import DraftSession
from outrider_target.drafting.remote.fleet import MAX_OFFENCES, DraftFleet
from outrider_target.drafting.remote.patience import LinkPace, RoundPace, decide, patience
from outrider_target.drafting.remote.updates import (
    CommitTokens,
    Growth,
    LinkFrame,
    OpenSession,
    Resync,
)
from target.batch import SPECULATION, request
from target.fake_link import FakeLink

SYNCHRONOUS = dataclasses.replace(SPECULATION, synchronous=True, timeout_seconds=60.0)


def count_up(prefix: list[int]) -> int:
    return prefix[-1] + 1


def drafted(session: DraftSession, window: int) -> list[int]:
    return list(session.proposal(window).token_ids)


def open_session(
    fleet: DraftFleet, *, window: int = 3, synchronous: bool = True, run_ahead: int = 0
) -> DraftSession:
    speculation = SYNCHRONOUS if synchronous else SPECULATION
    speculation = dataclasses.replace(speculation, run_ahead=run_ahead)
    generation = request([10, 11, 12], speculation=speculation)
    session = fleet.open(generation, sample_index=0, token_ids=[10, 11, 12], window=window)
    fleet.flush()
    return session


@pytest.fixture
def fleet() -> DraftFleet:
    return DraftFleet(vocab_size=1000, round_pace=RoundPace(seconds=10.0))


@pytest.fixture
def link(fleet: DraftFleet) -> FakeLink:
    link = FakeLink(fleet, count_up)
    link.come_up()
    return link


def test_a_round_costs_one_frame_each_way(fleet: DraftFleet, link: FakeLink) -> None:
    sessions = [open_session(fleet) for _ in range(5)]
    link.answer()
    link.frames.clear()
    for session in sessions:
        assert drafted(session, 3) == [13, 14, 15]
        session.commit([13, 14, 15, 16], window=3)
    fleet.flush()
    assert [len(frame) for frame in link.frames] == [5]
    link.answer()
    assert all(drafted(session, 3) == [17, 18, 19] for session in sessions)


def test_what_agrees_survives_a_commit_and_the_rest_is_dropped(
    fleet: DraftFleet, link: FakeLink
) -> None:
    session = open_session(fleet, window=5)
    link.answer()
    session.commit([13, 14], window=5)
    assert drafted(session, 5) == [15, 16, 17], "below the committed tokens the tree stays"
    session.commit([99], window=5)
    assert drafted(session, 5) == [], "the walk left the tree"
    fleet.flush()
    link.answer()
    assert drafted(session, 5) == [100, 101, 102, 103, 104]


def test_an_answer_that_comes_too_late_is_used_if_it_agrees(
    fleet: DraftFleet, link: FakeLink
) -> None:
    session = open_session(fleet, window=5)
    session.commit([13, 14], window=5)  # decoded plainly meanwhile, and not sent yet
    link.answer()
    assert drafted(session, 5) == [15, 16, 17]


def test_a_synchronous_session_waits_until_the_answer_is_there(
    fleet: DraftFleet, link: FakeLink
) -> None:
    session = open_session(fleet)
    now = time.monotonic()
    deadline = session.waiting_until(3, now)
    assert deadline is not None
    assert deadline - now > 50
    link.answer()
    assert session.waiting_until(3, now) is None


def test_nobody_waits_for_a_window_of_zero(fleet: DraftFleet, link: FakeLink) -> None:
    session = open_session(fleet)
    assert session.waiting_until(0, time.monotonic()) is None


def test_an_adaptive_session_does_not_hold_back_the_first_token(
    fleet: DraftFleet, link: FakeLink
) -> None:
    session = open_session(fleet, synchronous=False)
    assert session.waiting_until(3, time.monotonic()) is None
    session.commit([50], window=3)
    assert session.waiting_until(3, time.monotonic()) is not None, "later tokens are worth waiting"


def test_run_ahead_lets_the_next_draft_be_there_at_once(fleet: DraftFleet, link: FakeLink) -> None:
    session = open_session(fleet, synchronous=False, run_ahead=4)
    link.answer()
    session.commit([13, 14, 15, 16], window=3)
    assert drafted(session, 3) == [17, 18, 19]
    assert session.waiting_until(3, time.monotonic()) is None


def test_sessions_go_to_the_least_loaded_link_and_move_when_it_goes_down(
    fleet: DraftFleet, link: FakeLink
) -> None:
    other = FakeLink(fleet, count_up)
    other.come_up()
    sessions = [open_session(fleet) for _ in range(6)]
    assert len(link.sessions) == len(other.sessions) == 3
    link.go_down()
    fleet.flush()
    assert len(other.sessions) == 6
    other.answer()
    assert all(drafted(session, 3) == [13, 14, 15] for session in sessions)
    other.go_down()
    assert all(not session.active for session in sessions)
    assert all(session.waiting_until(3, time.monotonic()) is None for session in sessions)
    assert all(drafted(session, 3) == [] for session in sessions)


def fail_to_answer(fleet: DraftFleet, link: FakeLink, session: DraftSession, token: int) -> None:
    """A synchronous session waits in vain, and goes on."""
    link.due.clear()
    session.commit([token], window=3)
    fleet.flush()


def test_sessions_leave_a_link_that_hangs_in_mid_sequence(
    fleet: DraftFleet, link: FakeLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    other = FakeLink(fleet, count_up)
    session = open_session(fleet)
    link.answer()
    other.come_up()
    for token in range(50, 54):
        fail_to_answer(fleet, link, session, token)
        clock[0] += 1.0
    fleet.flush()
    other.answer()
    assert drafted(session, 3) == [54, 55, 56]
    assert not link.sessions
    # Where it is the only one left it has another chance.
    other.go_down()
    fleet.flush()
    link.answer()
    assert drafted(session, 3) == [54, 55, 56]


def test_a_link_that_hung_is_tried_again(
    fleet: DraftFleet, link: FakeLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    other = FakeLink(fleet, count_up)
    first = open_session(fleet)
    other.come_up()
    for token in range(50, 54):
        fail_to_answer(fleet, link, first, token)
        clock[0] += 1.0
    fleet.flush()
    open_session(fleet)
    assert (len(link.sessions), len(other.sessions)) == (0, 2)
    clock[0] += 10.0
    fleet.flush()
    assert (len(link.sessions), len(other.sessions)) == (1, 1)


def test_a_link_that_comes_back_takes_sessions_off_the_other_one_by_one(
    fleet: DraftFleet, link: FakeLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    sessions = [open_session(fleet) for _ in range(8)]
    link.answer()
    other = FakeLink(fleet, count_up)
    other.come_up()
    held = []
    for _ in range(6):
        clock[0] += 1.0
        fleet.flush()
        held.append(len(other.sessions))
        assert len(link.sessions) + len(other.sessions) == 8
    assert held == [1, 2, 3, 3, 3, 3]
    other.answer()
    assert all(drafted(session, 3) == [13, 14, 15] for session in sessions)


def test_a_link_that_comes_back_is_told_all_committed_tokens(
    fleet: DraftFleet, link: FakeLink
) -> None:
    session = open_session(fleet)
    link.go_down()
    session.commit([50, 51], window=2)
    link.come_up()
    link.frames.clear()
    fleet.flush()
    ((opened,),) = link.frames
    assert isinstance(opened, OpenSession)
    assert list(opened.token_ids) == [10, 11, 12, 50, 51]
    link.answer()
    assert drafted(session, 2) == [52, 53]


def test_a_drafter_that_forgot_is_told_again(fleet: DraftFleet, link: FakeLink) -> None:
    session = open_session(fleet)
    link.answer()
    (number,) = link.sessions
    link.sessions.clear()
    session.commit([50], window=2)
    fleet.flush()  # answered with Resync at once
    fleet.flush()
    assert link.sessions[number].tree.token_ids == [10, 11, 12, 50]
    link.answer()
    assert drafted(session, 2) == [51, 52]


def test_a_drafter_that_holds_less_is_told_the_rest(fleet: DraftFleet, link: FakeLink) -> None:
    session = open_session(fleet)
    session.commit([50, 51, 52], window=2)
    fleet.flush()
    link.frames.clear()
    (number,) = link.sessions
    link.send(resyncs=[Resync(number, 4, False, "lost some")])
    fleet.flush()
    ((update,),) = link.frames
    assert isinstance(update, CommitTokens)
    assert (update.base_length, list(update.token_ids)) == (4, [51, 52])


def test_a_session_that_is_refused_goes_elsewhere_and_never_back(
    fleet: DraftFleet, link: FakeLink
) -> None:
    session = open_session(fleet)
    (number,) = link.sessions
    other = FakeLink(fleet, count_up)
    other.come_up()
    link.send(resyncs=[Resync(number, 0, True, "no room")])
    fleet.flush()
    assert number in other.sessions
    other.go_down()
    assert not session.active, "the first one has refused it"


def test_a_full_drafter_gets_no_more_sessions(fleet: DraftFleet) -> None:
    link = FakeLink(fleet, count_up)
    link.come_up(max_sessions=2)
    sessions = [open_session(fleet) for _ in range(3)]
    assert [session.active for session in sessions] == [True, True, False]


@pytest.mark.parametrize(
    "proposals",
    [
        [Proposal(1, 0, 1000, 0.0)],  # outside the vocabulary
        [Proposal(1, 5, 1, 0.0)],  # a parent that cannot exist
        [Proposal(0, 0, 1, 0.0)],  # no such id
        [Proposal(1, 0, 1, 0.0), Proposal(1, 0, 2, 0.0)],  # an id twice
        [Proposal(i, 0, 1, 0.0) for i in range(1, 1000)],  # a flood
    ],
)
def test_repeated_offences_close_the_link(
    fleet: DraftFleet, link: FakeLink, proposals: list[Proposal]
) -> None:
    open_session(fleet)
    (number,) = link.sessions
    for _ in range(MAX_OFFENCES + 1):
        link.send([Growth(number, 3, proposals, False)])
    assert link.expelled


def test_frames_for_sessions_that_are_gone_are_nobodys_business(
    fleet: DraftFleet, link: FakeLink
) -> None:
    session = open_session(fleet)
    (number,) = link.sessions
    session.close()
    fleet.flush()
    assert not link.sessions
    link.send([Growth(number, 3, [Proposal(1, 0, 1, 0.0)], True)], [Resync(number, 0, False, "")])
    link.send([Growth(12345, 3, [Proposal(1, 0, 1, 0.0)], True)])
    assert not link.expelled
    assert fleet.links[0].offences == 0


def test_a_wait_is_a_few_times_the_usual_one_and_never_longer_than_allowed() -> None:
    pace = LinkPace()
    pace.answered(0.004)
    assert patience(pace.latency, round_seconds=0.010, timeout=1.0) == pytest.approx(0.012)
    assert patience(pace.latency, round_seconds=0.010, timeout=0.003) == pytest.approx(0.003)


def test_a_poor_draft_is_waited_for_once_in_64_rounds() -> None:
    pace = LinkPace()
    pace.answered(0.004)
    assert decide(pace, worth=0.005, dispensable=True) == (True, True)
    asked = [decide(pace, worth=0.003, dispensable=False) for _ in range(640)]
    assert all(question.ask for question in asked), "a late answer may be of use as well"
    assert sum(question.wait for question in asked) == 10
    dispensed = [decide(pace, worth=0.003, dispensable=True) for _ in range(640)]
    assert sum(question.ask for question in dispensed) == 10


def test_a_silent_drafter_is_not_waited_for_until_it_answers() -> None:
    pace = LinkPace()
    pace.answered(0.004)

    def waits() -> bool:
        return decide(pace, worth=0.02, dispensable=True).wait

    for _ in range(3):
        assert waits()
        pace.missed()
    assert not any(waits() for _ in range(640))
    asked = [decide(pace, worth=0.02, dispensable=True).ask for _ in range(640)]
    assert sum(asked) == 10, "or it would never be heard of again"
    pace.answered(0.004)
    assert waits()


def opened_on_a_known_link(fleet: DraftFleet, reading: float | None) -> DraftSession:
    fleet.links[0].pace.latency, fleet.links[0].pace.reading = 0.5, reading
    return open_session(fleet, synchronous=False)


def test_a_first_draft_is_waited_for_where_that_pays(fleet: DraftFleet, link: FakeLink) -> None:
    """A round takes 10 s here: three tokens that are read in 3 s are worth a wait, in 30 s not."""
    patient = opened_on_a_known_link(fleet, 1.0)
    assert patient.waiting_until(3, time.monotonic()) is not None
    link.answer()
    assert patient.waiting_until(3, time.monotonic()) is None
    assert drafted(patient, 3) == [13, 14, 15]
    assert opened_on_a_known_link(fleet, 10.0).waiting_until(3, time.monotonic()) is None
    assert opened_on_a_known_link(fleet, None).waiting_until(3, time.monotonic()) is None


def test_how_long_texts_take_to_be_read_is_learned_from_first_answers(
    fleet: DraftFleet, link: FakeLink
) -> None:
    pace = fleet.links[0].pace
    pace.latency = 0.5
    open_session(fleet, synchronous=False)
    (number,) = link.sessions
    fleet.handle(LinkFrame(0, time.monotonic() + 3.5, [Growth(number, 3, [], True)], []))
    assert pace.reading == pytest.approx(1.0, rel=0.01), "three tokens, beyond the usual latency"
    assert pace.opening(10) == pytest.approx(10.5, rel=0.01)
