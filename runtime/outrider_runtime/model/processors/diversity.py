"""Group beam search keeps its groups apart: what others chose in this step is worth less.

Vijayakumar et al., "Diverse Beam Search", 2018, arXiv 1610.02424, with the Hamming distance.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from outrider_runtime.model.arrays import Array, Arrays
from outrider_runtime.model.row_group import PlacedGroup


def subtract_penalties(xp: Arrays, scores: Array, placed: Sequence[PlacedGroup]) -> None:
    """Take each group's penalties off the scores of its rows, in place."""
    for group, first_row in placed:
        if group.penalties:
            token_ids = xp.integers(np.fromiter(group.penalties.keys(), np.int64))
            values = xp.floats(np.fromiter(group.penalties.values(), np.float64))
            scores[first_row : first_row + group.num_rows, token_ids] -= values
