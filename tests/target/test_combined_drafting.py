"""Remote drafter and prompt lookup side by side: which one a round verifies, and who is asked."""

from __future__ import annotations

import math
import time
from dataclasses import replace

import pytest
from outrider_runtime.recent_texts import RecentTexts
from outrider_target.drafting.agreement import Agreement
from outrider_target.drafting.combined import CombinedDrafter
from outrider_target.drafting.drafter import NO_DRAFT, DraftSession
from outrider_target.drafting.lookup import LookupDrafter
from outrider_target.drafting.remote.fleet import DraftFleet
from outrider_target.drafting.remote.patience import RoundPace
from outrider_target.drafting.remote.updates import CloseSession, CommitTokens
from outrider_target.requests.request import DraftMethod
from target.batch import SPECULATION, request
from target.fake_link import FakeLink

PROMPT = [10, 11, 12]
WINDOW = 3


def count_up(prefix: list[int]) -> int:
    return prefix[-1] + 1


@pytest.fixture
def fleet() -> DraftFleet:
    return DraftFleet(vocab_size=1000, round_pace=RoundPace(seconds=1.0))


@pytest.fixture
def link(fleet: DraftFleet) -> FakeLink:
    link = FakeLink(fleet, count_up)
    link.come_up()
    return link


def open_session(fleet: DraftFleet) -> DraftSession:
    generation = request(PROMPT, speculation=SPECULATION)
    session = CombinedDrafter(fleet, RecentTexts(0)).open(
        generation, sample_index=0, token_ids=PROMPT, window=WINDOW
    )
    fleet.flush()
    return session


def drafted(session: DraftSession) -> tuple[list[int], DraftMethod]:
    draft = session.proposal(WINDOW)
    return list(draft.token_ids), draft.method


def commit(fleet: DraftFleet, session: DraftSession, *token_ids: int) -> None:
    session.commit(token_ids, window=WINDOW)
    fleet.flush()


def test_new_text_is_drafted_remotely(fleet: DraftFleet, link: FakeLink) -> None:
    session = open_session(fleet)
    assert session.proposal(WINDOW) == NO_DRAFT
    link.answer()
    assert drafted(session) == ([13, 14, 15], DraftMethod.REMOTE)


def test_repeated_text_is_looked_up_while_the_drafter_is_silent(
    fleet: DraftFleet, link: FakeLink
) -> None:
    session = open_session(fleet)
    commit(fleet, session, 10, 11)
    assert drafted(session) == ([12, 10, 11], DraftMethod.PROMPT_LOOKUP)


def test_without_any_link_there_is_prompt_lookup(fleet: DraftFleet) -> None:
    session = open_session(fleet)
    assert session.active
    commit(fleet, session, 10, 11)
    assert session.waiting_until(WINDOW, time.monotonic()) is None
    assert session.proposal(WINDOW).method is DraftMethod.PROMPT_LOOKUP


def test_what_was_right_more_often_is_verified(fleet: DraftFleet, link: FakeLink) -> None:
    """Both always have a proposal; the text counts up, then repeats itself."""
    session = open_session(fleet)
    for first in range(13, 60, 4):  # lookup learns nothing yet: no token comes twice
        link.answer()
        commit(fleet, session, *range(first, first + 4))
    for _ in range(12):
        commit(fleet, session, 10, 500)
        link.answer()  # 501, 502, 503: wrong
    assert drafted(session) == ([10, 500, 10], DraftMethod.PROMPT_LOOKUP)
    for first in range(600, 900, 5):  # `10` was followed by `500` so far, never again
        link.answer()
        commit(fleet, session, *range(first, first + 4), 10)
    link.answer()
    assert drafted(session) == ([11, 12, 13], DraftMethod.REMOTE)


def test_a_drafter_that_cannot_beat_what_is_at_hand_is_left_in_peace_and_told_later(
    fleet: DraftFleet, link: FakeLink
) -> None:
    fleet.links[0].pace.answered(0.05)  # of a round of one second
    session = open_session(fleet)
    link.answer()
    commit(fleet, session, 50, 51)
    link.answer()
    while session.proposal(WINDOW).method is not DraftMethod.PROMPT_LOOKUP:
        commit(fleet, session, 50, 51)
        link.answer()
    for _ in range(20):
        commit(fleet, session, 50, 51)
    link.frames.clear()
    for _ in range(5):
        commit(fleet, session, 50, 51)
        assert session.waiting_until(WINDOW, time.monotonic()) is None
    assert not link.frames, "lookup is always right here"
    commit(fleet, session, 77)  # nothing to look up
    ((update,),) = link.frames
    assert isinstance(update, CommitTokens)
    assert list(update.token_ids)[-11:] == [50, 51] * 5 + [77]
    (far,) = link.sessions.values()
    assert far.tree.token_ids[-11:] == [50, 51] * 5 + [77], "nothing was left out"
    link.answer()
    assert drafted(session) == ([78, 79, 80], DraftMethod.REMOTE)


def test_closing_closes_the_remote_session(fleet: DraftFleet, link: FakeLink) -> None:
    session = open_session(fleet)
    session.close()
    fleet.flush()
    assert isinstance(link.frames[-1][0], CloseSession)
    assert not link.sessions


def test_what_rests_on_a_longer_match_is_preferred_once_it_was_right_more_often(
    fleet: DraftFleet,
) -> None:
    """After 5, 6 comes 7 or 8: two tokens do not tell which, the three before them do."""
    session = open_session(fleet)
    verses = [[1, 20, 5, 6, 7, 30], [2, 21, 5, 6, 8, 31]]
    for _ in range(12):
        for verse in verses:
            commit(fleet, session, *verse[:4])
            commit(fleet, session, *verse[4:])
    for verse in verses:
        commit(fleet, session, *verse[:4])
        token_ids, method = drafted(session)
        assert token_ids[:2] == verse[4:]
        assert method is DraftMethod.SUFFIX
        commit(fleet, session, *verse[4:])


def test_a_prediction_is_drafted_from_while_it_holds(fleet: DraftFleet) -> None:
    expected = list(range(100, 160))
    generation = request(PROMPT, speculation=replace(SPECULATION, prediction=tuple(expected)))
    session = CombinedDrafter(fleet, RecentTexts(0)).open(
        generation, sample_index=0, token_ids=PROMPT, window=WINDOW
    )
    assert drafted(session) == (expected[:3], DraftMethod.PREDICTION)
    commit(fleet, session, *expected[:20])
    assert drafted(session) == (expected[20:23], DraftMethod.PREDICTION)
    for _ in range(10):
        commit(fleet, session, 7, 8)
    assert drafted(session)[1] is not DraftMethod.PREDICTION


def test_each_drafter_says_how_sure_it_is_of_its_own(fleet: DraftFleet, link: FakeLink) -> None:
    session = open_session(fleet)
    link.answer()
    draft = session.proposal(WINDOW)
    assert draft.method is DraftMethod.REMOTE
    assert draft.probabilities == pytest.approx([math.exp(-0.5)] * WINDOW)
    looked_up = LookupDrafter().open(
        request([1, 2, 1]), sample_index=0, token_ids=[1, 2, 1], window=WINDOW
    )
    assert looked_up.proposal(WINDOW).probabilities is None, "a copy is no opinion"


def test_agreement_is_counted_up_to_the_first_difference() -> None:
    agreement = Agreement(memory=1e9)
    for _ in range(1000):
        agreement.observe([1, 2, 3, 4], [1, 2, 9])  # compared: 1, 2 and 3
    assert agreement.rate == pytest.approx(2 / 3, abs=0.01)
    assert agreement.accepted_per_draft == pytest.approx(2, abs=0.01)
    assert agreement.expected_accepted(2) == pytest.approx(2 / 3 + 4 / 9, abs=0.02)


def test_agreement_forgets() -> None:
    agreement = Agreement(memory=20)
    for _ in range(100):
        agreement.observe([1], [1])
    assert agreement.rate > 0.9
    for _ in range(100):
        agreement.observe([1], [2])
    assert agreement.rate < 0.2


def test_a_new_sequence_begins_with_what_the_others_have_taught() -> None:
    prior = Agreement(memory=1000)
    for _ in range(100):
        Agreement(prior).observe([1, 2], [5])
    assert Agreement(prior).rate < 0.1
    own = Agreement(prior)
    for _ in range(30):
        own.observe([1], [1])
    assert own.rate > 0.8 > 0.5 > prior.rate
