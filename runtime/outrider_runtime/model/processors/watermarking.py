"""Watermarks: the last that is done to scores before they are normalised, sampled or not.

They see what the truncations left, so unlike the edits they come after the warpers and may work on
a row's candidates alone. Knows nothing of noise or of how a token is chosen.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from outrider_runtime.model.arrays import Array, Arrays
from outrider_runtime.model.processors.green_list import green_list_of
from outrider_runtime.model.processors.marked_row import MarkedRow
from outrider_runtime.model.processors.synthid import tournament_of
from outrider_runtime.model.row_group import RowGroup
from outrider_runtime.watermarks import GreenList, Watermark


class Marking(Protocol):
    """A watermark on some rows: a named tuple of what it takes, worked out on the host."""

    def apply(self, xp: Arrays, values: Array, token_ids: Array | None) -> None:
        """Mark the rows, in place.

        Args:
            xp: where the scores live, and by now the arrays of the marking.
            values: [rows, n] scores in the order of their token ids.
            token_ids: int64 [rows, n], 0 at padding of minus infinity; None when n is the
                vocabulary.
        """


def markings_of(
    groups: Sequence[RowGroup], lengths: Sequence[int], vocab_size: int
) -> list[Marking]:
    """The watermarks that are asked for.

    Args:
        groups: whose row each is.
        lengths: number of tokens each row sees.
        vocab_size: size of the vocabulary.
    """
    marked: dict[Watermark, list[MarkedRow]] = {}
    for row, (group, length) in enumerate(zip(groups, lengths, strict=True)):
        if (mark := group.parameters.watermark) is not None:
            marked.setdefault(mark, []).append(MarkedRow(row, group, length))
    found: list[Marking | None] = [
        green_list_of(rows, mark, vocab_size)
        if isinstance(mark, GreenList)
        else tournament_of(rows, mark)
        for mark, rows in marked.items()
    ]
    return [marking for marking in found if marking is not None]


def add_watermarks(
    xp: Arrays, values: Array, token_ids: Array | None, markings: Sequence[Marking]
) -> Array:
    """Mark the rows that ask for it; arguments as `Marking.apply`.

    Returns:
        The marked scores: a copy, or `values` itself where nobody wants a watermark.
    """
    if markings:
        values = xp.copy(values)
        for marking in markings:
            marking.apply(xp, values, token_ids)
    return values
