"""Token healing: the last token of a prompt is chosen again, among those that begin with its text.

A prompt that ends in "http" has its token boundary where no tokenizer would put one in a link, and
the model, which never saw ":" follow it, writes something else. transformers' `heal_tokens` is the
source of the semantics: the prompt's text is stripped and tokenized again, its last token taken
off, and one forward chooses among all tokens that begin with it, the one taken off favoured by 1.0.

Other than there, the choice is the highest score and never sampled, is always one of those tokens,
a space at their start counts, and special tokens of the prompt stay where they are. Knows nothing
of gRPC and of engines.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from outrider_runtime.sampling_parameters import BiasedPhrase, SamplingParameters
from outrider_runtime.tokenizer import backend
from transformers import PreTrainedTokenizerFast

from outrider_target.constraints.token_trie import TokenTrie
from outrider_target.engine.sequence import RequestState, new_state
from outrider_target.requests.request import DraftMethod, GenerationRequest

FIELD = "generation_config.token_healing"

_FAVOUR = 1.0
"""For the token that was there: limits healing to where it matters, as in transformers."""
_LAST_CHARACTER = "\U0010ffff"


class Cut(NamedTuple):
    """A prompt before its last token is chosen again.

    Attributes:
        prompt: The prompt, tokenized again.
        candidates: Tokens that begin with the text of its last one, that one among them; empty
            when there is nothing to choose.
    """

    prompt: list[int]
    candidates: list[int]


class Healer:
    """Finds where to cut, for one tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, *, vocab_size: int) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._special = frozenset(tokenizer.all_special_ids)
        self._pieces: list[tuple[str, int]] = []

    async def cut(self, prompt: Sequence[int]) -> Cut:
        """Tokenize a prompt again and find what may stand at its end."""
        return await asyncio.to_thread(self._cut, prompt)

    def _cut(self, prompt: Sequence[int]) -> Cut:
        start = len(prompt)
        while start and self._has_text(prompt[start - 1]):
            start -= 1
        head = list(prompt[:start])
        text = str(self._tokenizer.decode(prompt[start:])).strip()
        if not text:
            return Cut(list(prompt), [])
        again = [*head, *self._tokenizer.encode(text, add_special_tokens=False)]
        candidates = self._beginning_with(again[-1])
        # A first token has nothing before it to be chosen by.
        return Cut(again, candidates if len(candidates) > 1 and len(again) > 1 else [])

    def _has_text(self, token_id: int) -> bool:
        if token_id in self._special:
            return False
        return backend(self._tokenizer).id_to_token(token_id) is not None

    def _beginning_with(self, token_id: int) -> list[int]:
        """Tokens of the vocabulary whose piece begins with that of this one.

        Pieces, not texts: a space or half a character at the start then counts.
        """
        if not self._pieces:
            vocabulary = backend(self._tokenizer).get_vocab(with_added_tokens=False)
            self._pieces = sorted(
                (piece, i)
                for piece, i in vocabulary.items()
                if i < self._vocab_size and i not in self._special
            )
        piece = backend(self._tokenizer).id_to_token(token_id)
        assert piece is not None, "its own tokenizer gave it"
        first = bisect_left(self._pieces, (piece, -1))
        last = bisect_left(self._pieces, (piece + _LAST_CHARACTER, -1))
        return [i for _, i in self._pieces[first:last]]


def choosing_state(request: GenerationRequest, cut: Cut, *, vocab_size: int) -> RequestState:
    """What the engine must run to choose the last token of a request's prompt."""
    *rest, last = cut.prompt
    # Of its own making, so that none of the request's options shapes the choice.
    choosing = GenerationRequest(
        id=request.id,
        prompt=tuple(rest),
        parameters=SamplingParameters(
            sequence_bias=(BiasedPhrase((last,), _FAVOUR),), max_length=len(cut.prompt)
        ),
        seed=request.seed,
        num_sequences=1,
        stop_strings=(),
        max_time=request.max_time,
        speculation=replace(request.speculation, method=DraftMethod.NONE),
        num_top_log_probs=None,
        given=(),
        effective_config=request.effective_config,
        prefill_chunk_size=request.prefill_chunk_size,
    )
    return new_state(
        choosing,
        None,
        TokenTrie([[i] for i in cut.candidates], field=FIELD, vocab_size=vocab_size),
    )
