"""One text in two tokenizations: whatever is decided, both sides say the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from outrider_draft.translation.bilingual_text import BilingualText, Lookbehind
from outrider_draft.translation.lexicon import REPLACEMENT, Lexicon
from outrider_draft.translation.shared_items import SharedItems
from translation.conftest import PAIRS
from translation.vocabularies import CORPUS

Items = Callable[[str, str], SharedItems]

LOSSLESS = ("bytes", "longer bytes", "fallback")
SEARCH = settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
TEXT = CORPUS * 2
TEN = Lookbehind(10, 10)
"""transformers' defaults."""


def spoken(lexicon: Lexicon, token_ids: Sequence[int]) -> str:
    """The text of ids, without a character that is not finished."""
    return lexicon.decoder([]).push(token_ids)


class Writer:
    """A draft model that always writes on as `TEXT` goes on."""

    def __init__(self, items: SharedItems, lookbehind: Lookbehind) -> None:
        self.items = items
        self.text = BilingualText(items, lookbehind)
        self.num_written = 0

    def draft(self, tokens: Sequence[int], window: int) -> list[int]:
        """Target tokens that go on from these."""
        chain: list[int] = []
        for _ in range(8 * window):
            self.text.follow([*tokens, *chain])
            if self.text.stuck or len(chain) >= window:
                break
            if self.text.ready:
                chain += [proposed.token_id for proposed in self.text.ready]
                continue
            written = spoken(self.items.draft, self.text.draft_ids)
            rest = TEXT[len(written) :]
            if not rest:
                break
            self._write(rest)
        return chain[:window]

    def _write(self, rest: str) -> None:
        encoded = self.items.draft.encode(f"~{rest}")
        first = encoded.boundary(1)
        assert first is not None
        ids = encoded.ids[first:]
        pieces = next(n for n in range(1, 9) if spoken(self.items.draft, ids[:n]))
        for draft_id in ids[:pieces]:
            self.text.write(draft_id, -0.25)
            self.num_written += 1


@pytest.mark.parametrize(("target", "draft"), [p for p in PAIRS if set(p) < set(LOSSLESS)])
@pytest.mark.parametrize("lookbehind", [TEN, Lookbehind(2, 3)], ids=str)
def test_a_draft_that_knows_the_text_is_accepted_nearly_always(
    target: str, draft: str, lookbehind: Lookbehind, items_of: Items
) -> None:
    items = items_of(target, draft)
    writer = Writer(items, lookbehind)
    ids = items.target.encode(TEXT).ids
    length, drafted, accepted = 12, 0, 0
    while length < len(ids) - 12:
        chain = writer.draft(ids[:length], 4)
        right = next((i for i, c in enumerate(chain) if c != ids[length + i]), len(chain))
        drafted += len(chain)
        accepted += right
        writer.text.rewind(length + right)
        length += right + 1
    assert drafted > len(ids) // 2
    assert accepted > 0.8 * drafted


def test_without_looking_behind_a_piece_of_a_text_is_read_as_its_beginning(
    items_of: Items,
) -> None:
    """A tokenizer that puts a space before every text puts it before every piece of one."""
    back = items_of("fallback", "bytes")
    before = [*back.target.encode("def main").ids]
    said = {}
    for lookbehind in (TEN, Lookbehind(0, 10)):
        text = BilingualText(back, lookbehind)
        text.follow(before)
        for draft_id in back.draft.encode("(args)").ids:
            text.write(draft_id, 0.0)
        text.follow(before)
        said[lookbehind] = [proposed.token_id for proposed in text.rest(before)]
    assert back.target.decode([*before, *said[TEN]]) == "def main(args)"
    assert said[Lookbehind(0, 10)] == []
    forth = items_of("bytes", "fallback")
    whole = forth.target.encode("def main(args)").ids
    seen = {}
    for lookbehind in (TEN, Lookbehind(10, 0)):
        text = BilingualText(forth, lookbehind)
        for length in range(3, len(whole) + 1):
            text.follow(whole[:length])
        seen[lookbehind] = forth.draft.decode(text.draft_ids)
    assert seen[TEN] == "def main(args)" != seen[Lookbehind(10, 0)]


@pytest.mark.parametrize("pair", [("bytes", "longer bytes"), ("fallback", "bytes")], ids=str)
def test_the_draft_model_sees_what_the_target_decided(
    pair: tuple[str, str], items_of: Items
) -> None:
    """After any number of wrong drafts, its ids are those of a fresh start, or the same text."""
    items = items_of(*pair)
    other = items.draft.encode("completely other words, 東京").ids
    ids = items.target.encode(TEXT).ids
    text = BilingualText(items, TEN)
    num_kept = 0
    for length in range(3, len(ids), 3):
        kept = text.follow(ids[:length])
        num_kept += kept
        fresh = BilingualText(items, TEN)
        fresh.follow(ids[:length])
        assert spoken(items.draft, text.draft_ids) == spoken(items.target, ids[:length])
        assert text.draft_ids == fresh.draft_ids
        for draft_id in other[: length % 5]:
            text.write(draft_id, 0.0)
    # Nearly all of what it has seen stays: that is what the cache is for.
    assert num_kept > 0.8 * sum(range(3, len(ids), 3)) * len(text.draft_ids) / len(ids)


def test_a_character_begun_by_the_target_is_finished_by_the_draft(items_of: Items) -> None:
    items = items_of("bytes", "longer bytes")
    ids = items.target.encode("vu 🙂!").ids
    begun = next(
        n for n in range(1, len(ids)) if items.target.decode(ids[:n]).endswith(REPLACEMENT)
    )
    text = BilingualText(items, TEN)
    text.follow(ids[:begun])
    assert items.draft.decode(text.draft_ids) == "vu "
    for draft_id in items.draft.encode("🙂!").ids:
        text.write(draft_id, -1.0)
    text.follow(ids[:begun])
    drafted = [p.token_id for p in text.rest(ids[:begun])]
    assert drafted == ids[begun:]


def test_special_tokens_come_over_as_what_they_mean_or_not_at_all(items_of: Items) -> None:
    items = items_of("bytes", "longer bytes")
    special = {name: i for i, name in items.target.special.items()}
    meant = {name: i for i, name in items.draft.special.items()}
    ids = [special["<|user|>"], *items.target.encode("the target").ids, special["<end>"]]
    text = BilingualText(items, TEN)
    text.follow(ids)
    assert text.draft_ids == [
        meant["<|user|>"],
        *items.draft.encode("the target").ids,
        meant["<end>"],
    ]
    bare = BilingualText(items_of("bytes", "fallback"), TEN)
    bare.follow(ids)
    fallback = bare._items.draft
    assert bare.draft_ids == [
        *fallback.prefix,
        *fallback.encode("the target").ids,
        fallback.eos_id,
    ]


def test_a_text_that_begins_as_the_draft_models_do_begins_so_once(items_of: Items) -> None:
    items = items_of("fallback", "word pieces")
    assert items.target.bos_id is not None
    same = SharedItems(items.target, items.target, vocab_size=items.target.size)
    text = BilingualText(same, TEN)
    ids = [*items.target.prefix, *items.target.encode("the target").ids]
    text.follow(ids)
    assert text.draft_ids == ids


def test_log_probabilities_are_those_of_the_draft_tokens_in_a_target_token(
    items_of: Items,
) -> None:
    items = items_of("longer bytes", "bytes")
    before = items.target.encode("def main(").ids
    after = items.target.encode("def main(args): return").ids[len(before) :]
    text = BilingualText(items, TEN)
    text.follow(before)
    written = items.draft.encode("args): return").ids
    assert len(written) > len(after)
    for i, draft_id in enumerate(written):
        text.write(draft_id, -float(2**i))
    text.follow(before)
    proposed = text.rest(before)
    assert [p.token_id for p in proposed] == after
    assert sum(p.log_prob for p in proposed) == -(2.0 ** len(written) - 1)
    assert all(p.log_prob < 0 for p in proposed)


@pytest.mark.parametrize("draft", LOSSLESS)
def test_what_the_target_cannot_say_is_not_proposed(draft: str, items_of: Items) -> None:
    """Capitals and double spaces do not come back from a tokenizer of lower-case words."""
    items = items_of("words", draft)
    before = items.target.encode("def main(").ids
    for unsayable in ("ARGS", "args   )", "nonsenseword"):
        text = BilingualText(items, TEN)
        text.follow(before)
        for draft_id in items.draft.encode(unsayable).ids:
            text.write(draft_id, 0.0)
        text.follow(before)
        said = items.target.decode([*before, *(p.token_id for p in text.rest(before))])
        assert (items.target.decode(before) + " " + unsayable).startswith(said)


ARBITRARY = st.lists(st.integers(0, 450), max_size=40)


@SEARCH
@given(
    pair=st.sampled_from(PAIRS),
    lookbehind=st.builds(Lookbehind, st.integers(0, 12), st.integers(0, 12)),
    start=ARBITRARY,
    rounds=st.lists(st.tuples(ARBITRARY, st.integers(0, 60), ARBITRARY), max_size=6),
)
def test_arbitrary_ids_raise_nothing_and_proposals_go_on_from_them(
    pair: tuple[str, str],
    lookbehind: Lookbehind,
    start: list[int],
    rounds: list[tuple[list[int], int, list[int]]],
    items_of: Items,
) -> None:
    items = items_of(*pair)
    text = BilingualText(items, lookbehind)
    tokens = list(start)
    text.follow(tokens)
    for written, rewound, decided in rounds:
        for draft_id in written:
            text.write(draft_id % items.draft.size, -0.5)
            kept = text.follow(tokens)
            assert 0 <= kept <= len(text.draft_ids)
            assert all(p.token_id not in items.target.special for p in text.ready)
            assert all(p.log_prob <= 0 for p in text.ready)
            if pair[0] == "bytes" and text.ready:
                new = [p.token_id for p in text.ready]
                assert spoken(items.target, [*tokens, *new]).startswith(
                    spoken(items.target, tokens)
                )
            tokens += [p.token_id for p in text.ready]
        length = min(rewound, len(tokens))
        text.rewind(length)
        tokens = [*tokens[:length], *decided]
        text.follow(tokens)


@SEARCH
@given(
    pair=st.sampled_from([p for p in PAIRS if set(p) < set(LOSSLESS)]),
    text=st.text(alphabet=st.characters(codec="utf-8", exclude_characters=REPLACEMENT)),
    start=st.integers(1, 20),
    writing=st.text(alphabet="dé東🙂 aie\n", max_size=6),
)
def test_the_draft_model_sees_the_text_and_proposals_are_what_it_writes(
    pair: tuple[str, str], text: str, start: int, writing: str, items_of: Items
) -> None:
    items = items_of(*pair)
    ids = items.target.encode(f"a{text}").ids
    both = BilingualText(items, TEN)
    for length in range(start, len(ids) + 1, 3):
        tokens = ids[:length]
        both.follow(tokens)
        seen = spoken(items.target, tokens)
        assert spoken(items.draft, both.draft_ids).startswith(seen)
        for draft_id in items.draft.encode(f"a{writing}").ids:
            both.write(draft_id, 0.0)
        wrote = spoken(items.draft, both.draft_ids)
        both.follow(tokens)
        said = spoken(items.target, [*tokens, *(p.token_id for p in both.rest(tokens))])
        assert said in (wrote[: len(said)], seen)
