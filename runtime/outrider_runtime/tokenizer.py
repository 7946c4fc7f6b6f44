"""Tokenizers of model folders: loading, identity, and text that grows token by token.

Fast tokenizers only, those with a `tokenizers` backend. Importing this module imports neither
transformers nor torch; loading a tokenizer does. Knows nothing of models and requests.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer

from outrider_runtime.errors import StartupError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")


def load_tokenizer(path: str | Path) -> PreTrainedTokenizerFast | None:
    """The tokenizer of a model folder or hub id; None when the folder has none.

    Raises:
        StartupError: There is one, but it cannot be loaded or has no fast form.
    """
    folder = Path(path)
    if folder.is_dir() and not any((folder / name).is_file() for name in _FILES):
        return None
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(path), trust_remote_code=False)
    except Exception as error:  # whatever the libraries make of a broken file
        raise StartupError(f"cannot load the tokenizer of {path}: {_first_line(error)}") from None
    if not getattr(tokenizer, "is_fast", False):  # what is no tokenizer of theirs lacks it
        raise StartupError(
            f"the tokenizer of {path} has no fast form; save one as tokenizer.json with it"
        )
    loaded: PreTrainedTokenizerFast = tokenizer
    return loaded


def fingerprint(tokenizer: PreTrainedTokenizerFast) -> str:
    """Hex SHA-256 of what gives token ids their meaning.

    That is vocabulary and merges, added tokens, normalizer, pre-tokenizer, decoder, and the ids
    that begin and end a text. Padding, truncation and the post-processor (which special tokens a
    prompt gets) are left out: two tokenizers that differ in them alone understand each other's ids.
    """
    state: dict[str, Any] = json.loads(backend(tokenizer).to_str())
    model = state["model"]
    identity = {
        "type": model.get("type"),
        "vocab": model.get("vocab"),
        # Files of older releases write a merge as "a b", newer ones as ["a", "b"].
        "merges": [m.split(" ") if isinstance(m, str) else m for m in model.get("merges") or ()],
        "added_tokens": sorted(state.get("added_tokens") or (), key=lambda token: token["id"]),
        "normalizer": state.get("normalizer"),
        "pre_tokenizer": state.get("pre_tokenizer"),
        "decoder": state.get("decoder"),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    canonical = json.dumps(identity, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()


def backend(tokenizer: PreTrainedTokenizerFast) -> Tokenizer:
    """The `tokenizers` object behind a fast tokenizer."""
    found = tokenizer.backend_tokenizer
    assert isinstance(found, Tokenizer)
    return found


class StreamDecoder:
    """Turns token ids into pieces of text as they come; the pieces joined are the decoded whole.

    A piece never ends inside a character: bytes that may still become one are held back until they
    have, or until `finish`. So is text behind U+FFFD, which is what unfinished characters look
    like.

    With byte fallback the whole can differ where it is not UTF-8: such decoders turn a whole run of
    byte tokens into U+FFFD for one wrong byte, the good ones that are out already included.

    `tokenizers.decoders.DecodeStream` does the same until that happens, and then raises for good;
    nor can it be flushed.

    Args:
        tokenizer: Any backend, byte-level or with byte fallback.
        skip_special_tokens: Whether special tokens leave no text.
        context: Token ids before the first piece, such as the end of the prompt. With them a
            decoder that strips the space before the first word of a text does not take the first
            piece for the beginning of one.
    """

    # Decoding a window costs time per token in it. Windows hold a character or two, except for
    # text that is no UTF-8 at all; those are cut, or each token would cost more than the last.
    _LONG = 48
    _KEPT = 24

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        skip_special_tokens: bool = True,
        context: Sequence[int] = (),
    ) -> None:
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        self._silent = _special_ids(tokenizer) if skip_special_tokens else frozenset()
        self._begin(context)

    def _begin(self, context: Sequence[int]) -> None:
        # The window: tokens whose text is out already, as far as they shape what follows, then
        # those whose text is not.
        self._ids = self._audible(context)
        self._num_settled = len(self._ids)
        self._num_emitted = len(self._decode(self._ids))

    @property
    def holds_back(self) -> bool:
        """Whether tokens were added whose text is not out: a character is not finished."""
        return self._num_settled < len(self._ids)

    def copy(self) -> StreamDecoder:
        """Returns another that goes on from here."""
        other = copy.copy(self)
        other._ids = [*self._ids]
        return other

    def anew(self, context: Sequence[int] = ()) -> StreamDecoder:
        """Returns another of the same tokenizer, for a text of its own."""
        other = copy.copy(self)
        other._begin(context)
        return other

    def push(self, token_ids: Sequence[int]) -> str:
        """Adds tokens and returns the text they complete, which may be none.

        Ids that the tokenizer does not know leave no text.
        """
        pieces = []
        for token_id in self._audible(token_ids):
            self._ids.append(token_id)
            pieces.append(self._take())
        return "".join(pieces)

    def finish(self) -> str:
        """Returns what is still held back; an unfinished character becomes U+FFFD."""
        piece = self._decode(self._ids)[self._num_emitted :]
        self._num_emitted += len(piece)
        return piece

    def _take(self) -> str:
        text = self._decode(self._ids)
        num_certain = len(text.rstrip(_REPLACEMENT))
        if num_certain < len(text):
            piece = text[self._num_emitted : num_certain]
            self._num_emitted = max(self._num_emitted, num_certain)
            return piece + self._cut(text) if len(self._ids) > self._LONG else piece
        piece = text[self._num_emitted :]
        self._num_emitted = len(text)
        if piece:
            # What is out shapes what follows only through its last piece.
            self._ids = self._ids[self._num_settled :]
            self._num_settled = len(self._ids)
            self._num_emitted = len(self._decode(self._ids))
        return piece

    def _cut(self, text: str) -> str:
        # No unfinished character has more than three bytes, so of a long run of U+FFFD all but the
        # last three are final. The cut may fall inside a character's bytes, which then look like up
        # to three more U+FFFD at the start of what is kept: those count as emitted.
        kept = self._ids[-self._KEPT :]
        kept_text = self._decode(kept)
        run = _REPLACEMENT * 12
        if not (text.endswith(run) and kept_text.endswith(run)):
            return ""
        piece = text[self._num_emitted : -3]
        self._ids = kept
        self._num_settled = 0
        self._num_emitted = len(kept_text) - 3
        return piece

    def _decode(self, token_ids: list[int]) -> str:
        return self._tokenizer.decode(token_ids, skip_special_tokens=self._skip_special_tokens)

    def _audible(self, token_ids: Sequence[int]) -> list[int]:
        # Decoding drops the others before it looks at bytes; here they would only lengthen the
        # window.
        known = self._tokenizer.id_to_token
        return [i for i in token_ids if i not in self._silent and known(i) is not None]


def _special_ids(tokenizer: Tokenizer) -> frozenset[int]:
    added = tokenizer.get_added_tokens_decoder()
    return frozenset(token_id for token_id, token in added.items() if token.special)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
