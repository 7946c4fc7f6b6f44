"""Rows that may choose some tokens only, as transformers' `prefix_allowed_tokens_fn` makes them.

Knows nothing of why a token is allowed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from outrider_runtime.model.arrays import Array, Arrays
from outrider_runtime.model.row_group import PlacedGroup


class _Allowed(NamedTuple):
    """Rows and their masks: an `Edit`."""

    rows: Array | slice
    """Int64 [restricted rows], or the slice that they are."""
    masks: Array
    """Bool [restricted rows, vocab]."""

    def apply(self, xp: Arrays, scores: Array) -> None:
        """See `Edit`."""
        kept = xp.where(self.masks, scores[self.rows], -math.inf)
        banned = (xp.max(kept) == -math.inf) & self.masks
        scores[self.rows] = xp.where(banned, 0.0, kept)


def keep_allowed(placed: Sequence[PlacedGroup], _vocab_size: int) -> _Allowed | None:
    """Minus infinity for what a row may not choose.

    A row whose allowed tokens were all banned before gets them back with score 0, so that the
    restriction always holds; so in transformers.
    """
    rows: list[int] = []
    masks = []
    for group, first_row in placed:
        if group.allowed is not None:
            rows += range(first_row, first_row + group.num_rows)
            masks.append(group.allowed)
    if not rows:
        return None
    together = rows[-1] - rows[0] == len(rows) - 1
    return _Allowed(
        slice(rows[0], rows[-1] + 1) if together else np.array(rows, np.int64),
        masks[0] if len(masks) == 1 else np.concatenate(masks),
    )
