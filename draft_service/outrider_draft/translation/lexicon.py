"""One tokenizer as translation needs it. Knows nothing of models, sessions or other tokenizers."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from outrider_runtime.tokenizer import StreamDecoder, backend, fingerprint
from tokenizers import Encoding, Tokenizer, processors

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
"""What unfinished characters look like."""


class Encoded(NamedTuple):
    """A text as token ids, and where in it each of them stands."""

    ids: Sequence[int]
    starts: Sequence[int]
    ends: Sequence[int]

    def boundary(self, offset: int) -> int | None:
        """How many tokens stand before a place in the text; None if it is inside of one."""
        before = bisect_right(self.ends, offset)
        inside = before < len(self.starts) and self.starts[before] < offset
        return None if inside else before


class Lexicon:
    """Text to ids and back, special tokens apart: they are never text, and no text becomes one."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.fingerprint = fingerprint(tokenizer)
        own = Tokenizer.from_str(backend(tokenizer).to_str())
        own.no_truncation()
        own.no_padding()
        mask = own.encode("a").special_tokens_mask
        self.prefix: list[int] = own.encode("a").ids[: mask.index(0) if 0 in mask else 0]
        """What it puts before every text."""
        # Special tokens are put in by us; and offsets are those of whole tokens, spaces included.
        own.post_processor = processors.TemplateProcessing(single="$A", pair="$A $B")
        own.encode_special_tokens = True
        self._tokenizer = own
        self._blank = StreamDecoder(own)
        added = own.get_added_tokens_decoder()
        self.special: dict[int, str] = {i: t.content for i, t in added.items() if t.special}
        """Ids and names of its special tokens."""
        self.bos_id: int | None = tokenizer.bos_token_id
        self.eos_id: int | None = tokenizer.eos_token_id
        self.size = 1 + max(own.get_vocab().values(), default=-1)
        """All its ids are below."""
        self._opening = self._find_opening()

    def encode(self, text: str) -> Encoded:
        """A text, or a part of one."""
        return _encoded(self._tokenizer.encode(text, add_special_tokens=False))

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of ids; unknown and special ones leave none."""
        return self._tokenizer.decode(token_ids, skip_special_tokens=True)

    def decoder(self, before: Sequence[int]) -> StreamDecoder:
        """Tells token by token what text comes behind these ids; a few are enough."""
        return self._blank.anew(before)

    def name(self, token_id: int) -> str | None:
        """How the tokenizer itself spells an id."""
        return self._tokenizer.id_to_token(token_id)

    @property
    def decoder_state(self) -> object:
        """What decides how names become text; equal ones give equal names equal bytes."""
        decoder = self._tokenizer.decoder
        return None if decoder is None else decoder.__getstate__()

    def texts(self) -> list[str]:
        """What each id adds to a text that goes on; empty for those that add nothing by themselves.

        A piece of a character shows as U+FFFD.
        """
        if self._opening is None:
            return [""] * self.size
        token_id, ahead = self._opening
        found = self._tokenizer.decode_batch(
            [[token_id, i] for i in range(self.size)], skip_special_tokens=True
        )
        return [text[len(ahead) :] if text.startswith(ahead) else "" for text in found]

    def firsts(self, texts: Sequence[str]) -> list[int | None]:
        """The first token of each text, in the middle of one; None where it cannot be told."""
        ahead = self._opening[1] if self._opening else ""
        read = self._tokenizer.encode_batch(
            [ahead + text for text in texts], add_special_tokens=False
        )
        found: list[int | None] = []
        for encoding in read:
            place = _encoded(encoding).boundary(len(ahead))
            if place is None or place == len(encoding.ids):
                found.append(None)
            else:
                found.append(encoding.ids[place])
        return found

    def _find_opening(self) -> tuple[int, str] | None:
        """An id that begins a text, a plain one if possible, and what it says."""
        ids = [*self.encode("~").ids, *(i for i in range(self.size) if i not in self.special)]
        return next(((i, text) for i in ids if (text := self.decode([i]))), None)


def _encoded(encoding: Encoding) -> Encoded:
    spans = encoding.offsets
    return Encoded(encoding.ids, [start for start, _ in spans], [end for _, end in spans])
