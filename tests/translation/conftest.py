"""Tokenizers and model pairs that many tests share."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
from outrider_draft.translation.lexicon import Lexicon
from outrider_draft.translation.shared_items import SharedItems
from translation.vocabularies import byte_fallback, byte_level, word_pieces, words

KINDS = ("bytes", "longer bytes", "fallback", "words", "word pieces")
PAIRS = [(a, b) for a in KINDS for b in KINDS if a != b]


@pytest.fixture(scope="session")
def lexicons() -> Mapping[str, Lexicon]:
    """A tokenizer of each kind."""
    made = (byte_level(300), byte_level(400), byte_fallback(), words(), word_pieces())
    return {kind: Lexicon(tokenizer) for kind, tokenizer in zip(KINDS, made, strict=True)}


@pytest.fixture(scope="session")
def items_of(lexicons: Mapping[str, Lexicon]) -> Callable[[str, str], SharedItems]:
    """What a target's kind has in common with a draft model's."""
    made: dict[tuple[str, str], SharedItems] = {}

    def items(target: str, draft: str) -> SharedItems:
        if (target, draft) not in made:
            size = lexicons[draft].size
            made[target, draft] = SharedItems(lexicons[target], lexicons[draft], vocab_size=size)
        return made[target, draft]

    return items
