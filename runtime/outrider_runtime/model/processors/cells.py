"""Single cells of the score matrix, collected over a batch and changed in one operation.

Knows nothing of what the change means.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from outrider_runtime.model.arrays import Array, Arrays


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

    def __bool__(self) -> bool:
        return bool(self._rows)

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

    def gather(self, xp: Arrays) -> tuple[Array, Array]:
        """Indices into the flattened scores (int64), and the values (float32), in order."""
        rows, tokens = np.concatenate(self._rows), np.concatenate(self._tokens)
        values = np.concatenate(self._values)
        indices = rows * self._vocab_size + tokens
        inside = tokens < self._vocab_size
        if not inside.all():
            indices, values = indices[inside], values[inside]
        return xp.integers(indices), xp.floats(values)

    def put(self, xp: Arrays, scores: Array) -> None:
        """Set the cells to their values, in place."""
        if self:
            indices, values = self.gather(xp)
            scores.reshape(-1)[indices] = values
