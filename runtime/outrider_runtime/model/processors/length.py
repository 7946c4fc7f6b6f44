"""Processors that depend on how long the text is, not on what it says; and the fixed bans.

Knows nothing of sampling, noise or acceptance, nor of where the scores live. Every function gives
an `Edit` of the batch's scores, or None. A row's length is the number of tokens it sees, prompt
included.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from outrider_runtime.model.arrays import Array, Arrays
from outrider_runtime.model.processors.cells import CellEdit, Cells
from outrider_runtime.model.row_group import PlacedGroup

_LARGEST_GROWTH = 1e30
"""Keeps a grown score finite (transformers overflows to infinity, and then cannot sample)."""


def ban_early_end(placed: Sequence[PlacedGroup], vocab_size: int) -> CellEdit | None:
    """min_length and min_new_tokens: no end of sequence before."""
    cells = Cells(vocab_size)
    for group, first_row in placed:
        parameters = group.parameters
        if not parameters.eos_token_ids:
            continue
        shortest = parameters.min_length
        if parameters.min_new_tokens is not None:
            shortest = max(shortest, group.num_prompt_tokens + parameters.min_new_tokens)
        for row in range(min(group.num_rows, shortest - group.first_length)):
            cells.add(first_row + row, parameters.eos_token_ids, -math.inf)
    return cells.edit()


class _Forced(NamedTuple):
    """Rows that may choose few tokens only, with score 0: an `Edit`."""

    rows: Array
    """Int64."""
    cells: CellEdit

    def apply(self, xp: Arrays, scores: Array) -> None:
        """See `Edit`."""
        xp.fill_rows(scores, self.rows, -math.inf)
        self.cells.apply(xp, scores)


def force_tokens(placed: Sequence[PlacedGroup], vocab_size: int) -> _Forced | None:
    """forced_bos_token_id as second token of the text, then forced_eos_token_id as its last."""
    forced: dict[int, Sequence[int]] = {}
    for group, first_row in placed:
        parameters = group.parameters
        if parameters.forced_bos_token_id is not None and group.first_length == 1:
            forced[first_row] = (parameters.forced_bos_token_id,)
        row = parameters.max_length - 1 - group.first_length
        if parameters.forced_eos_token_ids and 0 <= row < group.num_rows:
            forced[first_row + row] = parameters.forced_eos_token_ids
    cells = Cells(vocab_size)
    for row, token_ids in forced.items():
        cells.add(row, token_ids)
    edit = cells.edit()
    return None if edit is None else _Forced(np.array(list(forced), np.int64), edit)


class _Finite(NamedTuple):
    """Rows that hold no NaN and no infinity any more: an `Edit`."""

    spans: list[slice]

    def apply(self, xp: Arrays, scores: Array) -> None:
        """See `Edit`."""
        for rows in self.spans:
            xp.make_finite(scores[rows])


def remove_invalid_values(placed: Sequence[PlacedGroup], _vocab_size: int) -> _Finite | None:
    """NaN becomes 0, infinities the largest finite values, in the rows that ask for it."""
    spans = [
        slice(first_row, first_row + group.num_rows)
        for group, first_row in placed
        if group.parameters.remove_invalid_values
    ]
    return _Finite(spans) if spans else None


def favour_end(placed: Sequence[PlacedGroup], vocab_size: int) -> CellEdit | None:
    """exponential_decay_length_penalty: raise the end of sequence by |score| (factor^n - 1)."""
    cells = Cells(vocab_size)
    for group, first_row in placed:
        decay = group.parameters.exponential_decay_length_penalty
        if decay is None or not group.parameters.eos_token_ids:
            continue
        start, factor = group.num_prompt_tokens + decay[0], decay[1]
        for row in range(group.num_rows):
            excess = group.first_length + row - start
            if excess > 0:
                growth = _power(factor, excess) - 1
                cells.add(first_row + row, group.parameters.eos_token_ids, growth)
    return cells.edit(_grown)


def _grown(xp: Arrays, before: Array, growths: Array) -> Array:
    finite = (before > -math.inf) & (before < math.inf)
    return xp.where(finite, before + abs(before) * growths, before)


def _power(factor: float, exponent: int) -> float:
    try:
        return min(factor**exponent, _LARGEST_GROWTH)
    except OverflowError:
        return _LARGEST_GROWTH


def ban_suppressed(placed: Sequence[PlacedGroup], vocab_size: int) -> CellEdit | None:
    """suppress_tokens everywhere, begin_suppress_tokens where the output begins."""
    cells = Cells(vocab_size)
    for group, first_row in placed:
        parameters = group.parameters
        if parameters.suppress_tokens:
            for row in range(first_row, first_row + group.num_rows):
                cells.add(row, parameters.suppress_tokens, -math.inf)
        if parameters.begin_suppress_tokens:
            begin = group.num_prompt_tokens
            if begin <= 1 and parameters.forced_bos_token_id is not None:
                begin += 1  # the forced token comes first
            row = begin - group.first_length
            if 0 <= row < group.num_rows:
                cells.add(first_row + row, parameters.begin_suppress_tokens, -math.inf)
    return cells.edit()
