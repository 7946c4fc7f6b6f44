"""Single cells of the score matrix, collected over a batch and changed in one operation.

Knows nothing of what the change means.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from outrider_runtime.model.arrays import Array, Arrays

Change: TypeAlias = Callable[[Arrays, Array, Array], Array]
"""From where the scores live, the cells' scores and their values to what they become: float32."""


class CellEdit(NamedTuple):
    """Cells and what becomes of them: an `Edit`."""

    indices: Array
    """Int64: into the flattened scores, each once, or always with the same value."""
    values: Array
    """Float32, one a cell."""
    change: Change | None
    """None: the values take their place."""

    def apply(self, xp: Arrays, scores: Array) -> None:
        """See `Edit`."""
        flat = scores.reshape(-1)
        values = self.values
        if self.change is not None:
            values = self.change(xp, flat[self.indices], values)
        flat[self.indices] = values


class Cells:
    """(row, token) pairs, each with a value.

    Tokens at or above `vocab_size` are left out: a prompt may hold ids that the output layer cannot
    produce, and a draft model's vocabulary may be the smaller one.
    """

    __slots__ = ("_rows", "_tokens", "_values", "_vocab_size")

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._rows: list[npt.NDArray[np.int64]] = []
        self._tokens: list[npt.NDArray[np.int64]] = []
        self._values: list[npt.NDArray[np.float32]] = []

    def add(
        self,
        row: int,
        token_ids: Sequence[int] | npt.NDArray[np.int64],
        value: float | Sequence[float] = 0.0,
    ) -> None:
        """Collect the cells of `row` at `token_ids`, with one value or one for each."""
        tokens = np.asarray(token_ids, dtype=np.int64)
        self._tokens.append(tokens)
        self._rows.append(np.full(tokens.shape, row))
        self._values.append(np.broadcast_to(np.asarray(value, np.float32), tokens.shape))

    def edit(self, change: Change | None = None) -> CellEdit | None:
        """What is to be done to the cells; None where there are none."""
        if not self._rows:
            return None
        rows, tokens = np.concatenate(self._rows), np.concatenate(self._tokens)
        values = np.concatenate(self._values)
        indices = rows * self._vocab_size + tokens
        inside = tokens < self._vocab_size
        if not inside.all():
            indices, values = indices[inside], values[inside]
        return CellEdit(indices, values, change)
