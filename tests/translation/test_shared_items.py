"""What two vocabularies have in common, and what of a tokenizer never becomes text."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
from outrider_draft.translation.lexicon import REPLACEMENT, Lexicon
from outrider_draft.translation.shared_items import SharedItems
from translation.conftest import KINDS, PAIRS

Items = Callable[[str, str], SharedItems]


def test_special_tokens_written_in_a_text_stay_text(lexicons: Mapping[str, Lexicon]) -> None:
    for kind in ("bytes", "fallback"):
        lexicon = lexicons[kind]
        for name in lexicon.special.values():
            ids = lexicon.encode(f"a {name} b").ids
            assert lexicon.special.keys().isdisjoint(ids)
            assert lexicon.decode(ids) == f"a {name} b"


def test_what_is_put_before_every_text_is_known(lexicons: Mapping[str, Lexicon]) -> None:
    assert {kind: len(lexicons[kind].prefix) for kind in KINDS} == {
        "bytes": 0,
        "longer bytes": 0,
        "fallback": 1,
        "words": 0,
        "word pieces": 1,
    }
    assert lexicons["fallback"].special[lexicons["fallback"].prefix[0]] == "<s>"


@pytest.mark.parametrize(("target", "draft"), PAIRS)
def test_shared_items_are_the_same_piece_of_text(target: str, draft: str, items_of: Items) -> None:
    items = items_of(target, draft)
    ours, theirs = items.target.texts(), items.draft.texts()
    for token_id, draft_id in items.to_draft.items():
        if token_id in items.specials:
            assert items.specials[token_id] == draft_id
        else:
            assert ours[token_id] == theirs[draft_id] != ""
            assert items.begins_with[draft_id] == token_id


@pytest.mark.parametrize(("target", "draft"), PAIRS)
def test_other_items_begin_with_one_of_the_targets(
    target: str, draft: str, items_of: Items
) -> None:
    items = items_of(target, draft)
    ours, theirs = items.target.texts(), items.draft.texts()
    shared = set(items.to_draft.values())
    own = {d: t for d, t in items.begins_with.items() if d not in shared}
    lossless = {"bytes", "longer bytes", "fallback"} >= {target, draft}
    for draft_id, token_id in own.items():
        assert draft_id not in items.draft.special
        if lossless and REPLACEMENT not in ours[token_id]:
            assert theirs[draft_id].startswith(ours[token_id])
    assert not set(items.without_beginning) & items.begins_with.keys()
    assert not set(items.without_beginning) & set(items.draft.special)


def test_a_vocabulary_shares_all_of_a_larger_one_that_goes_on_from_it(items_of: Items) -> None:
    items = items_of("longer bytes", "bytes")
    assert len(items.to_draft) == items.draft.size
    assert items.begins_with.keys() == set(range(items.draft.size))
    assert items.without_beginning == []
    other_way = items_of("bytes", "longer bytes")
    assert len(other_way.to_draft) == other_way.target.size
    assert len(other_way.begins_with) > other_way.target.size + 50


def test_ends_of_text_mean_each_other_whatever_they_are_called(items_of: Items) -> None:
    items = items_of("bytes", "fallback")
    assert items.target.eos_id is not None
    assert items.specials == {items.target.eos_id: items.draft.eos_id}


def test_only_an_item_of_the_target_alone_can_still_come_of_a_text(items_of: Items) -> None:
    """A draft model with all of the target's items would have chosen the longer one."""
    items = items_of("bytes", "longer bytes")
    assert not any(items.may_grow(text) for text in ("", "a", " ", " d", "é"))
    longer = items_of("longer bytes", "bytes")
    texts = longer.target.texts()
    lost = [texts[i] for i in range(longer.target.size) if i not in longer.to_draft]
    assert len(lost) > 50
    for text in {*texts, *(t[:1] for t in texts)} - {""}:
        grows = any(t.startswith(text) and t != text for t in lost)
        assert longer.may_grow(text) is grows
