"""Watermarks: the last that is done to scores before they are normalised, sampled or not.

They see what the truncations left, so unlike the edits they come after the warpers and may work on
a row's candidates alone. Knows nothing of noise or of how a token is chosen.
"""

from __future__ import annotations

from collections.abc import Sequence

from outrider_runtime.model.arrays import Array, Arrays
from outrider_runtime.model.processors.green_list import add_green_list
from outrider_runtime.model.processors.marked_row import MarkedRow
from outrider_runtime.model.processors.synthid import add_synthid
from outrider_runtime.model.row_group import RowGroup
from outrider_runtime.watermarks import GreenList, Watermark


def add_watermarks(
    xp: Arrays,
    values: Array,
    token_ids: Array | None,
    *,
    groups: Sequence[RowGroup],
    lengths: Sequence[int],
    vocab_size: int,
) -> Array:
    """Mark the rows that ask for it.

    Args:
        xp: where the scores live.
        values: [rows, n] scores in the order of their token ids; not changed.
        token_ids: int64 [rows, n], 0 at padding of minus infinity; None when n is the vocabulary.
        groups: whose row each is.
        lengths: number of tokens each row sees.
        vocab_size: size of the vocabulary.

    Returns:
        The marked scores: a copy, or `values` itself where nobody wants a watermark.
    """
    marked: dict[Watermark, list[MarkedRow]] = {}
    for row, (group, length) in enumerate(zip(groups, lengths, strict=True)):
        if (mark := group.parameters.watermark) is not None:
            marked.setdefault(mark, []).append(MarkedRow(row, group, length))
    if not marked:
        return values
    values = xp.copy(values)
    for mark, rows in marked.items():
        if isinstance(mark, GreenList):
            add_green_list(xp, values, token_ids, rows, mark, vocab_size=vocab_size)
        else:
            add_synthid(xp, values, token_ids, rows, mark)
    return values
