"""What two vocabularies have in common. Knows nothing of sequences, models or tensors.

An item is shared when it is the same piece of text in both. An item of the draft model's own begins
with one of the target's, as the target reads it. So the draft model can choose its next token among
the target's items, under the very options and noise that the target will apply to them.
"""

from __future__ import annotations

from bisect import bisect_right

from outrider_draft.translation.lexicon import REPLACEMENT, Lexicon

NONE = -1
"""No such id."""


class SharedItems:
    """A target's vocabulary beside a draft model's.

    Args:
        target: The target's tokenizer.
        draft: The draft model's.
        vocab_size: Token ids the draft model knows; those of its tokenizer may be more.
    """

    def __init__(self, target: Lexicon, draft: Lexicon, *, vocab_size: int) -> None:
        self.target = target
        self.draft = draft
        self.specials = _specials(target, draft)
        """Target ids of special tokens, with the draft ids that mean the same."""
        texts, draft_texts = _keys(target), _keys(draft)
        if target.decoder_state != draft.decoder_state:  # the same name may be other bytes
            texts = {k: v for k, v in texts.items() if isinstance(k, str)}
        meanings = {
            i: text for text, i in draft_texts.items() if i < vocab_size and i not in draft.special
        }
        self.to_draft = {texts[text]: i for i, text in meanings.items() if text in texts}
        """Draft id of each shared target id, special ones included."""
        self.to_draft |= {t: d for t, d in self.specials.items() if d < vocab_size}
        self.begins_with = self._beginnings(meanings)
        """Target id that each draft id is, or begins with in the middle of a text."""
        self.without_beginning = sorted(meanings.keys() - self.begins_with.keys())
        """Draft ids of which that cannot be said, such as those of single bytes."""
        self._lost = sorted(
            text
            for i, text in enumerate(target.texts())
            if text and i not in self.to_draft and i not in target.special
        )

    def _beginnings(self, meanings: dict[int, _Key]) -> dict[int, int]:
        found = {d: t for t, d in self.to_draft.items()}
        if self.target.eos_id in self.to_draft:  # it may begin texts as well, but here it ends one
            found[self.to_draft[self.target.eos_id]] = self.target.eos_id
        own = {i: text for i, text in meanings.items() if i not in found and isinstance(text, str)}
        firsts = self.target.firsts(list(own.values()))
        return found | {i: t for i, t in zip(own, firsts, strict=True) if t is not None}

    def may_grow(self, text: str) -> bool:
        """Whether what follows a piece of text can make one target token of it and more.

        An item that is shared does not count: the draft model had it to choose, and did not.
        """
        place = bisect_right(self._lost, text)
        return place < len(self._lost) and self._lost[place].startswith(text)


_Key = str | tuple[str]
"""A text; or the name of an item that is no whole text, such as a byte."""


def _keys(lexicon: Lexicon) -> dict[_Key, int]:
    """Ids by what they mean; of several alike the last, as byte tokens come before the others."""
    keys: dict[_Key, int] = {}
    for token_id, text in enumerate(lexicon.texts()):
        if not text or token_id in lexicon.special:
            continue
        name = lexicon.name(token_id)
        whole = REPLACEMENT not in text
        if whole:
            keys[text] = token_id
        elif name is not None:
            keys[(name,)] = token_id
    return keys


def _specials(target: Lexicon, draft: Lexicon) -> dict[int, int]:
    by_name = {name: i for i, name in draft.special.items()}
    found = {i: by_name[name] for i, name in target.special.items() if name in by_name}
    for ours, theirs in ((target.bos_id, draft.bos_id), (target.eos_id, draft.eos_id)):
        if ours is not None and theirs is not None and ours in target.special:
            found.setdefault(ours, theirs)
    return found
