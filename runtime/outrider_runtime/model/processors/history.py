"""Processors that look at the tokens before a row: biases, penalties and bans of what was said.

Knows nothing of sampling, noise or acceptance. Every function changes `scores` [rows, vocab] in
place, and a row only through the tokens that row sees, so a verification of k draft tokens gives
each position what one-by-one decoding would have given it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from outrider_runtime.model.arrays import Array, Arrays
from outrider_runtime.model.processors.cells import Cells
from outrider_runtime.model.row_group import PlacedGroup
from outrider_runtime.sampling_parameters import PhraseIndex, SamplingParameters


def add_sequence_bias(xp: Arrays, scores: Array, placed: Sequence[PlacedGroup]) -> None:
    """Bias the last token of a phrase where the text ends with the tokens before it."""
    _add_phrases(xp, scores, placed, lambda parameters: parameters.bias_index)


def ban_bad_words(xp: Arrays, scores: Array, placed: Sequence[PlacedGroup]) -> None:
    """The same with minus infinity: a bad word is never completed."""
    _add_phrases(xp, scores, placed, lambda parameters: parameters.bad_words_index)


def penalise_repetition(xp: Arrays, scores: Array, placed: Sequence[PlacedGroup]) -> None:
    """Divide positive and multiply negative scores of tokens seen before, prompt included.

    Keskar et al., "CTRL", 2019, arXiv 1909.05858, section 4.1.
    """
    vocab_size = scores.shape[-1]
    cells = Cells(vocab_size)
    for group, first_row in placed:
        penalty = group.parameters.repetition_penalty
        if penalty == 1.0:
            continue
        tokens = _array(group.token_ids)
        seen = np.zeros(max(vocab_size, int(tokens.max(initial=0)) + 1), dtype=np.bool_)
        seen[tokens[: group.first_length]] = True
        repeated = np.flatnonzero(seen)
        cells.add(first_row, repeated, penalty)
        for row, token in enumerate(tokens[group.first_length :].tolist(), start=1):
            if not seen[token]:
                seen[token] = True
                repeated = np.append(repeated, token)
            cells.add(first_row + row, repeated, penalty)
    if cells:
        flat = scores.reshape(-1)
        indices, penalties = cells.gather(xp)
        before = flat[indices]
        flat[indices] = xp.where(before < 0, before * penalties, before / penalties)


def ban_repeated_ngrams(xp: Arrays, scores: Array, placed: Sequence[PlacedGroup]) -> None:
    """Ban every token that would complete an n-gram already there."""
    cells = Cells(scores.shape[-1])
    for group, first_row in placed:
        size = group.parameters.no_repeat_ngram_size
        if size == 0:
            continue
        tokens = _array(group.token_ids)
        for row in range(group.num_rows):
            length = group.first_length + row
            if length >= size:
                banned = _completions(tokens[:length], size - 1)
                cells.add(first_row + row, banned, -np.inf)
    cells.put(xp, scores)


def _completions(tokens: npt.NDArray[np.int64], overlap: int) -> npt.NDArray[np.int64]:
    """What followed the last `overlap` tokens wherever they occurred before."""
    if overlap == 0:
        return tokens
    # Indices at which a window of `overlap` tokens starts that has a successor: by its last token
    # first, which alone rules out nearly all.
    starts = np.flatnonzero(tokens[overlap - 1 : -1] == tokens[-1])
    suffix = tokens[len(tokens) - overlap :]
    for offset in range(overlap - 1):
        starts = starts[tokens[starts + offset] == suffix[offset]]
    return tokens[starts + overlap]


def _add_phrases(
    xp: Arrays,
    scores: Array,
    placed: Sequence[PlacedGroup],
    index_of: Callable[[SamplingParameters], PhraseIndex | None],
) -> None:
    cells = Cells(scores.shape[-1])
    for group, first_row in placed:
        index = index_of(group.parameters)
        if index is None:
            continue
        for row in range(group.num_rows):
            biases = _phrase_biases(index, group.token_ids, group.first_length + row)
            if biases:
                cells.add(first_row + row, list(biases), list(biases.values()))
    if cells:
        # Added even where it is minus infinity, as in transformers: a NaN stays one, for
        # remove_invalid_values or for the error that names it.
        indices, values = cells.gather(xp)
        scores.reshape(-1)[indices] += values


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
