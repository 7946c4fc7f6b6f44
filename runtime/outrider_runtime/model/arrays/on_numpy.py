"""`Arrays` in numpy, for CPU. The operations are documented there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from outrider_runtime.model.arrays.parcel import T
from outrider_runtime.model.arrays.protocol import Array, Arrays

_CACHED = 1 << 15
"""Number of entries that stay within a core's second-level cache through several operations."""


class _Numpy:
    at_once = _CACHED
    where: Callable[..., Array] = staticmethod(np.where)
    exp: Callable[[Array], Array] = staticmethod(np.exp)
    log: Callable[[Array], Array] = staticmethod(np.log)
    log1p: Callable[[Array], Array] = staticmethod(np.log1p)

    def send(self, value: T) -> T:
        return value

    def integers(self, values: Any) -> Array:
        return np.asarray(values, dtype=np.int64)

    def to_floats(self, x: Array) -> Array:
        return x.astype(np.float32)

    def fill_rows(self, x: Array, rows: Array, value: float) -> None:
        x[rows] = value

    def make_finite(self, x: Array) -> None:
        np.nan_to_num(x, copy=False)

    def copy(self, x: Array) -> Array:
        return x.copy()

    def pick(self, x: Array, indices: Array) -> Array:
        return x[np.arange(len(x)), indices]

    def softmax(self, x: Array) -> Array:
        weights = np.exp(x - self.max(x))
        return weights / self.sum(weights)

    def log_softmax(self, x: Array) -> Array:
        shifted = x - self.max(x)
        return shifted - np.log(self.sum(np.exp(shifted)))

    def log_prob(self, x: Array, indices: Array, tops: Array, *, padded: bool) -> Array:
        rows, width = x.shape
        totals = np.empty(rows, x.dtype)
        # A few rows at a time: fresh memory for all of a large batch costs more than the work.
        step = max(1, _CACHED // width)
        for start in range(0, rows, step):
            weights = x[start : start + step] - tops[start : start + step, None]
            np.exp(weights, out=weights)
            # The pairwise sum is fast, but groups its terms by the length of the row.
            total = self.sum(weights)[:, 0] if padded else np.add.reduce(weights, axis=-1)
            totals[start : start + step] = total
        return self.pick(x, indices) - tops - np.log(totals)

    def fetch(self, *arrays: Array) -> tuple[npt.NDArray[Any], ...]:
        return arrays

    def lists(self, *arrays: Array) -> tuple[list[Any], ...]:
        return tuple([one.tolist() for one in arrays])

    def sort(self, x: Array) -> Array:
        return np.sort(x, axis=-1)

    def argsort(self, x: Array, *, stable: bool) -> Array:
        return np.argsort(x, axis=-1, kind="stable" if stable else "quicksort")

    def take(self, x: Array, indices: Array) -> Array:
        return x[np.arange(len(x))[:, None], indices]

    def count(self, condition: Array) -> Array:
        return np.count_nonzero(condition, axis=-1, keepdims=True)

    def perhaps_any(self, condition: Array) -> bool:
        return bool(condition.any())

    def to_integers(self, x: Array) -> Array:
        return x.astype(np.int64)

    def max(self, x: Array) -> Array:
        return x.max(axis=-1, keepdims=True)

    def argmax(self, x: Array) -> Array:
        return x.argmax(axis=-1)

    def sum(self, x: Array) -> Array:
        # One after the other: numpy's pairwise sum groups its terms by the length of the row, so
        # padding would change the last bit.
        return np.add.accumulate(x, axis=-1, dtype=np.float64)[:, -1:].astype(x.dtype)

    def cumsum(self, x: Array) -> Array:
        return np.add.accumulate(x, axis=-1, dtype=np.float64).astype(x.dtype)

    def running_count(self, condition: Array) -> Array:
        return np.cumsum(condition, axis=-1)

    def doubles(self, x: Array) -> Array:
        return x.astype(np.float64)

    def arange(self, stop: int) -> Array:
        return np.arange(stop)

    def swap(self, x: Array) -> Array:
        return x[::-1]

    def pairs(self, first: Array, second: Array) -> Array:
        both = np.empty((2, *first.shape), first.dtype)
        both[0], both[1] = first, second
        return both

    def interleave(self, columns: Sequence[Array]) -> Array:
        return np.stack(columns, axis=-1).reshape(len(columns[0]), -1)

    def concatenate(self, pieces: Sequence[Array]) -> Array:
        return np.concatenate(pieces, axis=-1)


NUMPY: Arrays = _Numpy()
