"""Processors that look at the tokens before a row: biases, penalties and bans of what was said.

Knows nothing of sampling, noise or acceptance, nor of where the scores live. Every function gives
an `Edit` of the batch's scores, or None, which changes a row only by the tokens that row sees: so a
verification of k draft tokens gives each position what one-by-one decoding would have given it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from outrider_runtime.model.processors.cells import CellEdit, Cells
from outrider_runtime.model.processors.seen_tokens import SeenEdit, SeenTokens
from outrider_runtime.model.row_group import PlacedGroup
from outrider_runtime.sampling_parameters import PhraseIndex, SamplingParameters


def add_sequence_bias(placed: Sequence[PlacedGroup], vocab_size: int) -> CellEdit | None:
    """Bias the last token of a phrase where the text ends with the tokens before it."""
    return _add_phrases(placed, vocab_size, lambda parameters: parameters.bias_index)


def ban_bad_words(placed: Sequence[PlacedGroup], vocab_size: int) -> CellEdit | None:
    """The same with minus infinity: a bad word is never completed."""
    return _add_phrases(placed, vocab_size, lambda parameters: parameters.bad_words_index)


def reward_prompt_tokens(placed: Sequence[PlacedGroup], vocab_size: int) -> SeenEdit | None:
    """encoder_repetition_penalty: `penalise_repetition` of the prompt's tokens by its reciprocal.

    transformers takes a decoder-only model's prompt for what an encoder was given.
    """
    seen = SeenTokens(vocab_size)
    for group, first_row in placed:
        penalty = group.parameters.encoder_repetition_penalty
        if penalty != 1.0:
            prompt = _array(group.token_ids[: group.num_prompt_tokens])
            rows = range(first_row, first_row + group.num_rows)
            seen.add(rows, prompt, 1 / penalty, later=prompt[:0])
    return seen.edit()


def penalise_repetition(placed: Sequence[PlacedGroup], vocab_size: int) -> SeenEdit | None:
    """Divide positive and multiply negative scores of tokens seen before, prompt included.

    Keskar et al., "CTRL", 2019, arXiv 1909.05858, section 4.1.
    """
    seen = SeenTokens(vocab_size)
    for group, first_row in placed:
        penalty = group.parameters.repetition_penalty
        if penalty != 1.0:
            tokens, first = _array(group.token_ids), group.first_length
            rows = range(first_row, first_row + group.num_rows)
            seen.add(rows, tokens[:first], penalty, later=tokens[first:])
    return seen.edit()


def ban_repeated_ngrams(placed: Sequence[PlacedGroup], vocab_size: int) -> CellEdit | None:
    """Ban every token that would complete an n-gram already there."""
    cells = Cells(vocab_size)
    for group, first_row in placed:
        size = group.parameters.no_repeat_ngram_size
        if size == 0:
            continue
        tokens = _array(group.token_ids)
        for row in range(group.num_rows):
            length = group.first_length + row
            if length >= size:
                banned = _followers(tokens[:length], tokens[length - size + 1 : length])
                cells.add(first_row + row, banned, -np.inf)
    return cells.edit()


def ban_prompt_ngrams(placed: Sequence[PlacedGroup], vocab_size: int) -> CellEdit | None:
    """Ban every token that would complete an n-gram of the prompt."""
    cells = Cells(vocab_size)
    for group, first_row in placed:
        size = group.parameters.encoder_no_repeat_ngram_size
        prompt = _array(group.token_ids[: group.num_prompt_tokens])
        if size == 0 or len(prompt) < size:
            continue
        for row in range(group.num_rows):
            length = group.first_length + row
            suffix = _array(group.token_ids[length - size + 1 : length])
            cells.add(first_row + row, _followers(prompt, suffix), -np.inf)
    return cells.edit()


def _followers(text: npt.NDArray[np.int64], phrase: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """What follows `phrase` wherever it occurs in `text`, which is longer."""
    size = len(phrase)
    if size == 0:
        return text
    # Indices at which a window of the phrase's size starts that has a successor: by its last token
    # first, which alone rules out nearly all.
    starts = np.flatnonzero(text[size - 1 : -1] == phrase[-1])
    for offset in range(size - 1):
        starts = starts[text[starts + offset] == phrase[offset]]
    return text[starts + size]


def _add_phrases(
    placed: Sequence[PlacedGroup],
    vocab_size: int,
    index_of: Callable[[SamplingParameters], PhraseIndex | None],
) -> CellEdit | None:
    cells = Cells(vocab_size)
    for group, first_row in placed:
        index = index_of(group.parameters)
        if index is None:
            continue
        for row in range(group.num_rows):
            biases = _phrase_biases(index, group.token_ids, group.first_length + row)
            if biases:
                cells.add(first_row + row, list(biases), list(biases.values()))
    # Added even where it is minus infinity, as in transformers: a NaN stays one, for
    # remove_invalid_values or for the error that names it.
    return cells.edit(lambda _xp, before, biases: before + biases)


def _phrase_biases(index: PhraseIndex, token_ids: Sequence[int], length: int) -> dict[int, float]:
    """Sum of the biases on each token that may follow the first `length` tokens."""
    biases = dict(index.single)
    if length == 0:
        return biases
    for prefix, token_id, bias in index.ending_with(int(token_ids[length - 1])):
        start = length - len(prefix)
        if start >= 0 and tuple(token_ids[start:length]) == prefix:
            biases[token_id] = biases.get(token_id, 0.0) + bias
    return biases


def _array(token_ids: Sequence[int]) -> npt.NDArray[np.int64]:
    return np.asarray(token_ids, dtype=np.int64)
