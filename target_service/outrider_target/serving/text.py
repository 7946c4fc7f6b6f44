"""Text in and out: prompts to token ids, decided tokens to pieces of text.

Tokenizing runs in a worker thread, so that a long prompt does not hold the loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from outrider_runtime.errors import InvalidRequest, UnsupportedOption
from outrider_runtime.tokenizer import StreamDecoder, backend
from transformers import PreTrainedTokenizerFast

MAX_TEXT_LENGTH = 1_000_000
"""Longest text that is looked at, in characters."""

_CONTEXT = 8
"""Prompt tokens a decoder is shown first: some tokenizers join pieces differently at a start."""


class TextCodec:
    """The served model's tokenizer; None for a model without one."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast | None) -> None:
        self.tokenizer = tokenizer

    async def encode(
        self, text: str, *, add_special_tokens: bool = True, field: str = "text"
    ) -> list[int]:
        """Token ids of a text. `field`: where it comes from, for errors.

        Raises:
            InvalidRequest: The text is too long.
            UnsupportedOption: The model has no tokenizer.
        """
        tokenizer = self._require(field)
        if len(text) > MAX_TEXT_LENGTH:
            raise InvalidRequest(
                field, f"has {len(text)} characters; at most {MAX_TEXT_LENGTH} are possible"
            )

        def encode() -> list[int]:
            return list(tokenizer.encode(text, add_special_tokens=add_special_tokens))

        return await asyncio.to_thread(encode)

    async def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        """The text of token ids.

        Raises:
            InvalidRequest: An id is outside the tokenizer's vocabulary.
            UnsupportedOption: The model has no tokenizer.
        """
        tokenizer = self._require("token_ids")
        if token_ids and max(token_ids) >= len(tokenizer):
            raise InvalidRequest(
                "token_ids", f"{max(token_ids)} is outside the vocabulary of {len(tokenizer)}"
            )

        def decode() -> str:
            text: str = tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens)
            return text

        return await asyncio.to_thread(decode)

    def writer(self, prompt: Sequence[int], *, skip_special_tokens: bool) -> TextWriter:
        """What turns one sequence's tokens into text."""
        if self.tokenizer is None:
            return TextWriter(None)
        decoder = StreamDecoder(
            backend(self.tokenizer),
            skip_special_tokens=skip_special_tokens,
            context=prompt[-_CONTEXT:],
        )
        return TextWriter(decoder)

    def _require(self, field: str) -> PreTrainedTokenizerFast:
        if self.tokenizer is None:
            raise UnsupportedOption(
                field, "the served model has no tokenizer; send and read token ids"
            )
        return self.tokenizer


class TextWriter:
    """One sequence's text, piece by piece; empty without a tokenizer."""

    def __init__(self, decoder: StreamDecoder | None) -> None:
        self._decoder = decoder

    def write(self, token_ids: Sequence[int], *, last: bool) -> str:
        """The text that these tokens complete. `last`: nothing follows, give all there is."""
        if self._decoder is None:
            return ""
        text = self._decoder.push(token_ids)
        return text + self._decoder.finish() if last else text
