"""Rows that forwards are padded up to. Knows nothing of what is padded."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

SIZES: Sequence[int] = (1, 2, 4, 8, 16, 32, 48, 64, 96, 128, 192, 256)
"""Each holds at most twice what it was made for, and half as much again where rows begin to cost.
Behind the last one kernels outlast what Python needs to start them. Nor may there be more: up to so
many rows paged attention tells its kernel of the same bound in every batch."""


def padded(num_rows: int, sizes: Sequence[int]) -> int | None:
    """Returns the smallest of ascending sizes that holds so many rows; None if none does."""
    place = bisect_left(sizes, num_rows)
    return sizes[place] if place < len(sizes) else None


def fits(size: int) -> range:
    """Returns the numbers of rows that are padded up to a size of `SIZES` and to no smaller one."""
    place = SIZES.index(size)
    return range(SIZES[place - 1] + 1 if place else 1, size + 1)
