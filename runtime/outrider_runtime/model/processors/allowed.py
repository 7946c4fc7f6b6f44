"""Rows that may choose some tokens only, as transformers' `prefix_allowed_tokens_fn` makes them.

Knows nothing of why a token is allowed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from outrider_runtime.model.arrays import Array, Arrays
from outrider_runtime.model.row_group import PlacedGroup


def keep_allowed(xp: Arrays, scores: Array, placed: Sequence[PlacedGroup]) -> None:
    """In place: minus infinity for what a row may not choose.

    A row whose allowed tokens were all banned before gets them back with score 0, so that the
    restriction always holds; so in transformers.
    """
    for group, first_row in placed:
        if group.allowed is None:
            continue
        allowed = xp.booleans(group.allowed)  # [rows of the group, vocab]
        rows = slice(first_row, first_row + group.num_rows)
        kept = xp.where(allowed, scores[rows], -math.inf)
        banned = (xp.max(kept) == -math.inf) & allowed
        scores[rows] = xp.where(banned, 0.0, kept)
