"""Small arrays that travel together: all numpy arrays within a value, as one block of bytes.

What a round's rows ask for is dozens of short lists; each as a transfer of its own would cost a
device more than the work on them. Truth values travel as bits, so that a mask over a vocabulary is
an eighth of a byte for each token. Knows nothing of devices or of what is sent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

T = TypeVar("T")

_ALIGNMENT = 8
"""Bytes: every array begins where its numbers may, whatever they are."""


class Packed(NamedTuple):
    """Where an array lies in the block."""

    start: int
    """In bytes."""
    stop: int
    dtype: np.dtype[Any]
    """Of the array; truth values are bits, padded to whole bytes in the last dimension."""
    shape: tuple[int, ...]


class Parcel:
    """The arrays within a value, and what is needed to unpack them.

    Args:
        value: a numpy array, or tuples (named ones as well) and lists of values; what else is in it
            does not travel.
    """

    def __init__(self, value: object) -> None:
        self._value = value
        self._arrays: list[npt.NDArray[Any]] = []
        self._packed: list[Packed] = []
        self.num_bytes = 0
        """Size of the block."""
        for array in _arrays_of(value):
            bits = np.packbits(array, axis=-1, bitorder="little") if _is_bits(array) else array
            stop = self.num_bytes + bits.nbytes
            self._arrays.append(bits)
            self._packed.append(Packed(self.num_bytes, stop, array.dtype, array.shape))
            self.num_bytes = -(-stop // _ALIGNMENT) * _ALIGNMENT

    def __bool__(self) -> bool:
        """Whether there is anything to send."""
        return bool(self._arrays)

    def write(self, block: npt.NDArray[np.uint8]) -> None:
        """Fill a block of `num_bytes`."""
        for array, packed in zip(self._arrays, self._packed, strict=True):
            flat = np.ascontiguousarray(array).reshape(-1)
            block[packed.start : packed.stop] = flat.view(np.uint8)

    def unpacked(self, unpack: Callable[[Packed], object]) -> Any:
        """The value again, with each array replaced by what was made of its part of the block."""
        return _replaced(self._value, map(unpack, self._packed))


def _is_bits(array: npt.NDArray[Any]) -> bool:
    return array.dtype == np.bool_


def _arrays_of(value: object) -> Iterator[npt.NDArray[Any]]:
    if isinstance(value, np.ndarray):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _arrays_of(item)


def _replaced(value: Any, found: Iterator[object]) -> Any:
    if isinstance(value, np.ndarray):
        return next(found)
    if isinstance(value, tuple | list):
        items = [_replaced(item, found) for item in value]
        if isinstance(value, list):
            return items
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    return value
