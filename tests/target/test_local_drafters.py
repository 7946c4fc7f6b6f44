"""Drafters without a model inside the target: what they propose, and to whom."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from outrider_runtime.errors import InvalidRequest
from outrider_runtime.prompt_lookup import LookupRule
from outrider_runtime.recent_texts import RecentTexts
from outrider_target.drafting.combined import CombinedDrafter
from outrider_target.drafting.drafter import NO_DRAFT, Drafter, DraftSession
from outrider_target.drafting.lookup import LookupDrafter
from outrider_target.drafting.prediction import Alignment, PredictionDrafter
from outrider_target.drafting.remote.fleet import DraftFleet
from outrider_target.drafting.remote.patience import RoundPace
from outrider_target.drafting.suffix import SuffixDrafter
from outrider_target.requests.request import DraftMethod
from outrider_target.requests.sharing import MAX_SALT_BYTES, NOBODY, Sharing
from target.batch import SPECULATION, request

WINDOW = 4
PROMPT = [1, 2, 3]
TEXT = random.Random(0).sample(range(10, 500), 60)


def open_session(
    drafter: Drafter, prompt: Sequence[int] = PROMPT, **speculation: object
) -> DraftSession:
    settings = dataclasses.replace(SPECULATION, **speculation)  # type: ignore[arg-type]  # its fields
    generation = request(prompt, speculation=settings, eos_token_ids=(9,))
    return drafter.open(generation, sample_index=0, token_ids=prompt, window=WINDOW)


def write(session: DraftSession, token_ids: Sequence[int], *, at_a_time: int = 3) -> int:
    """Commit a text; returns how many of its tokens a drafter foretold."""
    foretold = position = 0
    while position < len(token_ids):
        draft = session.proposal(WINDOW).token_ids
        right = 0
        while right < len(draft) and list(draft[: right + 1]) == list(
            token_ids[position : position + right + 1]
        ):
            right += 1
        foretold += right
        size = max(at_a_time, right)
        session.commit(token_ids[position : position + size], window=WINDOW)
        position += size
    return foretold


def drafters(texts: RecentTexts) -> list[Drafter]:
    fleet = DraftFleet(vocab_size=1000, round_pace=RoundPace())
    return [SuffixDrafter(texts), CombinedDrafter(fleet, texts)]


@pytest.mark.parametrize("number", [0, 1])
def test_an_output_is_foretold_to_its_tenants_next_request_and_to_nobody_else(number: int) -> None:
    texts = RecentTexts(1000)
    drafter = drafters(texts)[number]
    first = open_session(drafter, tenant=b"anna")
    assert write(first, TEXT) == 0, "new to everybody"
    first.close()
    while texts.digest_some():
        pass
    for other in (b"bert", b""):
        assert write(open_session(drafter, tenant=other), TEXT) == 0
    assert write(open_session(drafter, tenant=b"anna"), TEXT) > 0.8 * len(TEXT)


def test_an_output_is_indexed_while_the_next_request_runs() -> None:
    drafter = SuffixDrafter(RecentTexts(1000))
    first = open_session(drafter, tenant=b"anna")
    write(first, TEXT)
    first.close()
    assert write(open_session(drafter, tenant=b"anna"), TEXT) > 0.8 * len(TEXT)


def test_a_prompt_is_drafted_from_and_is_not_remembered() -> None:
    texts = RecentTexts(1000)
    drafter = SuffixDrafter(texts)
    session = open_session(drafter, TEXT, tenant=b"anna")
    assert write(session, TEXT[20:50]) > 20
    session.close()
    while texts.digest_some():
        pass
    tree = texts.tree(b"anna")
    assert tree is not None
    assert len(tree) == 30


def test_a_long_prompt_is_read_by_and_by() -> None:
    long = [*random.Random(1).sample(range(500, 10_000), 2000), *TEXT]
    session = open_session(SuffixDrafter(RecentTexts(0)), long)
    session.commit(TEXT[:3], window=WINDOW)
    assert session.proposal(WINDOW) == NO_DRAFT, "2,000 tokens at once would hold up the batch"
    for start in range(3, 54, 2):
        session.commit(TEXT[start : start + 2], window=WINDOW)
    assert list(session.proposal(WINDOW).token_ids) == TEXT[55:59]


def test_a_suffix_draft_tells_how_sure_it_is() -> None:
    text = [3, 4, 5, 6, 1, 7, 3, 4, 5, 6, 2, 8, 3, 4, 5, 6, 2, 9, 3, 4, 5, 6]
    draft = open_session(SuffixDrafter(RecentTexts(0)), text).proposal(2)
    assert draft.method is DraftMethod.SUFFIX
    assert list(draft.token_ids) == [2, 9]
    assert draft.probabilities == pytest.approx([2 / 3 * 4 / 6, 1 / 2 * 5 / 7])


# --- predictions


def foretold(prediction: Sequence[int], output: Sequence[int]) -> int:
    return write(open_session(PredictionDrafter(), prediction=tuple(prediction)), output)


def test_what_comes_as_predicted_is_foretold_to_the_last_token() -> None:
    session = open_session(PredictionDrafter(), prediction=tuple(TEXT))
    assert write(session, TEXT) == len(TEXT)
    assert session.proposal(WINDOW) == NO_DRAFT, "nothing more is predicted"


@pytest.mark.parametrize(
    "edited",
    [
        pytest.param([*TEXT[:20], 777, *TEXT[21:]], id="replaced"),
        pytest.param([*TEXT[:20], *range(700, 705), *TEXT[20:]], id="inserted"),
        pytest.param([*TEXT[:20], *TEXT[30:]], id="left out"),
        pytest.param([777, 778, *TEXT], id="another beginning"),
        pytest.param([*TEXT[30:], *TEXT[:30]], id="in another order"),
    ],
)
def test_the_place_is_found_again_where_an_output_departs_from_its_prediction(
    edited: list[int],
) -> None:
    assert foretold(TEXT, edited) > len(edited) - 16


def test_of_equal_places_the_one_where_the_texts_parted_is_taken() -> None:
    block = [1, 2, 3, 4]
    prediction = [token for start in range(100, 160, 10) for token in (*block, start, start + 1)]
    alignment = Alignment(prediction)
    for token_id in prediction[:20]:
        alignment.follow(token_id)
    for token_id in (900, 901, 3, 4):  # in place of 3, 4
        alignment.follow(token_id)
    assert prediction[alignment.next : alignment.next + 2] == [130, 131]


def test_a_prediction_that_is_wrong_throughout_falls_silent() -> None:
    session = open_session(PredictionDrafter(), prediction=tuple(TEXT))
    session.commit(list(range(500, 510)), window=WINDOW)
    assert session.proposal(WINDOW) == NO_DRAFT


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 3), max_size=30), st.lists(st.integers(0, 3), max_size=30))
def test_whatever_the_texts_are_a_place_lies_within_the_prediction(
    prediction: list[int], output: list[int]
) -> None:
    alignment = Alignment(prediction)
    for number, token_id in enumerate(output):
        before = alignment.next
        alignment.follow(token_id)
        if before < len(prediction) and prediction[before] == token_id:
            assert alignment.next == before + 1
        assert 0 <= alignment.next <= len(prediction) + number + 1
        if alignment.agreed:
            size = min(2, alignment.agreed)
            end = alignment.next
            assert prediction[end - size : end] == output[number + 1 - size : number + 1]


# --- prompt lookup, by either rule


def test_lookup_continues_the_latest_match_or_transformers_first() -> None:
    prompt = [5, 6, 1, 2, 9, 4, 5, 6, 3, 7, 8, 5, 6]
    latest = open_session(LookupDrafter(), prompt).proposal(WINDOW)
    assert list(latest.token_ids) == [3, 7, 8, 5]
    first = open_session(LookupDrafter(), prompt, lookup_rule=LookupRule.FIRST).proposal(WINDOW)
    assert list(first.token_ids) == [1, 2], "cut before the end-of-sequence token"


# --- tenants


def test_tenants_differ_by_caller_and_by_salt() -> None:
    sharings = [Sharing(""), Sharing("key"), Sharing("key2")]
    tenants = [sharing.tenant(salt) for sharing in sharings for salt in ("", "2", "key")]
    assert len(set(tenants)) == 9
    assert all(tenants)
    assert Sharing("key").tenant("2") == tenants[4]
    assert NOBODY.tenant("2") == b""


def test_a_long_salt_is_refused() -> None:
    Sharing("").tenant("x" * MAX_SALT_BYTES)
    with pytest.raises(InvalidRequest, match="cache_salt"):
        Sharing("").tenant("x" * (MAX_SALT_BYTES + 1))
