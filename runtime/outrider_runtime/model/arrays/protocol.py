"""What the two kinds of arrays have in common. See the package."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias

import numpy.typing as npt

from outrider_runtime.model.arrays.parcel import T

Array: TypeAlias = Any
"""A numpy array or a torch tensor: the two share the operators, not a type."""


class Arrays(Protocol):
    """What `Numpy` and `Torch` both offer. Shapes are [rows, n] unless said otherwise."""

    def __hash__(self) -> int:
        """By identity: there is one object for each place where scores can live."""

    at_once: int
    """Number of scores to work on in one go: bounds the memory that takes."""

    def send(self, value: T) -> T:
        """`value` with the numpy arrays in it where the scores live.

        In one transfer, without a wait for the device: what is sent together costs once.

        Args:
            value: a numpy array (int32, int64, float32, float64, uint8 or bool), or tuples, named
                tuples and lists of such; whatever else is in them stays as it is.
        """

    def integers(self, values: Any) -> Array:
        """Int64 array of `values` (nested lists or a numpy array): a transfer of its own."""

    def to_floats(self, x: Array) -> Array:
        """Float32 copy of truth values: 1 and 0."""

    def fill_rows(self, x: Array, rows: Array, value: float) -> None:
        """In place: all entries of some rows. Torch would have to wait for `x[rows] = value`."""

    def make_finite(self, x: Array) -> None:
        """In place: NaN becomes 0, infinities the largest finite values."""

    def copy(self, x: Array) -> Array:
        """A contiguous copy."""

    def where(self, condition: Array, x: Array | float, y: Array | float) -> Array:
        """Elementwise choice."""

    def exp(self, x: Array) -> Array:
        """Elementwise exponential."""

    def log(self, x: Array) -> Array:
        """Elementwise logarithm."""

    def log1p(self, x: Array) -> Array:
        """Elementwise log(1 + x)."""

    def sort(self, x: Array) -> Array:
        """Values in ascending order."""

    def argsort(self, x: Array, *, stable: bool) -> Array:
        """Ascending order. Stable: of equal values the lower index comes first."""

    def take(self, x: Array, indices: Array) -> Array:
        """x[r, indices[r, i]]."""

    def count(self, condition: Array) -> Array:
        """Number of true entries of a row, [rows, 1]."""

    def perhaps_any(self, condition: Array) -> bool:
        """False only if no entry is true. Never waits for a device: torch always says True."""

    def to_integers(self, x: Array) -> Array:
        """Int64 of whole floats."""

    def max(self, x: Array) -> Array:
        """[rows, 1]; NaN when there is one."""

    def argmax(self, x: Array) -> Array:
        """[rows]; the first of equal values."""

    def sum(self, x: Array) -> Array:
        """[rows, 1]; float64 inside."""

    def cumsum(self, x: Array) -> Array:
        """Running sum; float64 inside, as transformers' sums on CPU."""

    def running_count(self, condition: Array) -> Array:
        """Running number of true entries, int64."""

    def pick(self, x: Array, indices: Array) -> Array:
        """x[r, indices[r]], [rows]."""

    def softmax(self, x: Array) -> Array:
        """Probabilities."""

    def log_softmax(self, x: Array) -> Array:
        """Logarithms of the probabilities."""

    def log_prob(self, x: Array, indices: Array, tops: Array, *, padded: bool) -> Array:
        """`log_softmax` at one entry of each row, [rows].

        Args:
            x: [rows, n].
            indices: [rows].
            tops: [rows], the highest value of each row.
            padded: whether rows differ in real length.
        """

    def fetch(self, *arrays: Array) -> tuple[npt.NDArray[Any], ...]:
        """Arrays of any shapes in numpy, of a device's as int64 (truth values too) or float64.

        In one transfer, and with `lists` the only operation here that waits for a device.
        """

    def lists(self, *arrays: Array) -> tuple[list[Any], ...]:
        """The same as lists."""

    def doubles(self, x: Array) -> Array:
        """Float64 copy."""

    def arange(self, stop: int) -> Array:
        """Int64 [stop]."""

    def swap(self, x: Array) -> Array:
        """x[1], x[0] along the first dimension, of length 2."""

    def pairs(self, first: Array, second: Array) -> Array:
        """Both, stacked along a new first dimension; `second` is broadcast to `first`."""

    def interleave(self, columns: Sequence[Array]) -> Array:
        """[rows, len(columns) * n]: the first entries of all columns, then the second ones, ..."""

    def concatenate(self, pieces: Sequence[Array]) -> Array:
        """Pieces of rows, side by side."""
