"""Group beam search keeps its groups apart: what others chose in this step is worth less.

Vijayakumar et al., "Diverse Beam Search", 2018, arXiv 1610.02424, with the Hamming distance.
"""

from __future__ import annotations

from collections.abc import Sequence

from outrider_runtime.model.processors.cells import CellEdit, Cells
from outrider_runtime.model.row_group import PlacedGroup


def subtract_penalties(placed: Sequence[PlacedGroup], vocab_size: int) -> CellEdit | None:
    """Take each group's penalties off the scores of its rows."""
    cells = Cells(vocab_size)
    for group, first_row in placed:
        if group.penalties:
            token_ids, values = list(group.penalties), list(group.penalties.values())
            for row in range(first_row, first_row + group.num_rows):
                cells.add(row, token_ids, values)
    return cells.edit(lambda _xp, before, values: before - values)
