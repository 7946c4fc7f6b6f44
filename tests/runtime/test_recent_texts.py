"""Recent texts: each tenant's own, in bounds, indexed little by little."""

from __future__ import annotations

import random

import pytest
from outrider_runtime.recent_texts import MIN_TOKENS, RecentTexts

ANNA, BERT, CARL = b"anna", b"bert", b"carl"
SECRET = list(range(100, 140))


def follows(texts: RecentTexts, tenant: bytes, context: list[int]) -> list[int]:
    tree = texts.tree(tenant)
    return [] if tree is None else list(tree.speculate(context, 4).token_ids)


def test_a_tenant_is_shown_its_own_texts_and_nobody_elses() -> None:
    texts = RecentTexts(1000)
    texts.add(ANNA, SECRET)
    texts.add(BERT, [7, 8, 9] * 5)
    texts.digest(1000)
    assert follows(texts, ANNA, SECRET[:4]) == SECRET[4:8]
    assert follows(texts, BERT, SECRET[:4]) == []
    assert follows(texts, BERT, [7, 8, 9]) == [7, 8, 9, 7]
    assert follows(texts, ANNA, [7, 8, 9]) == []


def test_who_has_no_name_shares_nothing() -> None:
    texts = RecentTexts(1000)
    texts.add(b"", SECRET)
    assert len(texts) == 0
    assert texts.tree(b"") is None


def test_texts_are_indexed_as_far_as_was_asked_for() -> None:
    texts = RecentTexts(1000)
    texts.add(ANNA, SECRET)
    texts.digest(10)
    assert texts.num_waiting == len(SECRET) - 10
    assert follows(texts, ANNA, SECRET[4:6]) == SECRET[6:10]
    assert follows(texts, ANNA, SECRET[12:14]) == []
    while texts.digest_some():
        pass
    assert follows(texts, ANNA, SECRET[12:14]) == SECRET[14:18]


def test_texts_do_not_run_into_one_another() -> None:
    texts = RecentTexts(1000)
    texts.add(ANNA, [1, 2, 3])
    texts.add(ANNA, [4, 5, 6])
    texts.digest(100)
    assert follows(texts, ANNA, [2, 3]) == []
    assert follows(texts, ANNA, [4, 5]) == [6]


def test_the_tenant_that_was_away_longest_makes_room() -> None:
    texts = RecentTexts(2 * MIN_TOKENS)
    for tenant in (ANNA, BERT):
        texts.add(tenant, list(range(MIN_TOKENS - 1)))
    texts.digest(1000)
    assert texts.tree(ANNA) is not None
    texts.add(CARL, list(range(MIN_TOKENS)))
    texts.digest(1000)
    assert texts.tree(BERT) is None
    assert follows(texts, ANNA, [0, 1]) == follows(texts, CARL, [0, 1]) == [2, 3, 4, 5]


@pytest.mark.parametrize("num_tenants", [1, 3, 50])
def test_however_much_is_written_little_is_held(num_tenants: int) -> None:
    chance, texts = random.Random(0), RecentTexts(200)
    for _ in range(200):
        tenant = bytes([chance.randrange(num_tenants)])
        texts.add(tenant, [chance.randrange(9) for _ in range(chance.randrange(150))])
        texts.digest(chance.randrange(120))
        assert texts.num_waiting <= 200
        indexed = [texts.tree(bytes([each])) for each in range(num_tenants)]
        held = sum(len(tree) for tree in indexed if tree is not None)
        assert held == len(texts) - texts.num_waiting <= 200
        assert texts.num_tenants == sum(tree is not None for tree in indexed)


def test_nothing_is_held_where_it_is_off() -> None:
    texts = RecentTexts(0)
    texts.add(ANNA, SECRET)
    assert not texts.digest_some()
    assert texts.tree(ANNA) is None


def test_too_little_room_is_refused() -> None:
    with pytest.raises(ValueError, match=str(MIN_TOKENS)):
        RecentTexts(MIN_TOKENS - 1)
