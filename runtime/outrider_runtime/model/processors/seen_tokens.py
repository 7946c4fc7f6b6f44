"""Tokens that rows have seen, whose scores are all divided or multiplied by one number.

A text may hold as many different tokens as the vocabulary, and each row of a draft sees nearly the
same ones: so a sequence's are a mask, which travels as bits, and only what the draft adds comes on
top, token by token. Knows nothing of why a token counts as seen.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from outrider_runtime.model.arrays import NUMPY, Array, Arrays
from outrider_runtime.model.processors.cells import CellEdit


class SeenEdit(NamedTuple):
    """Rows of several sequences: an `Edit`."""

    rows: Array
    """Int64 [n], of the batch."""
    sequences: Array
    """Int64 [n]: which mask is whose."""
    seen: Array
    """Bool [sequences, vocab]."""
    later: Array
    """Int64: cells of [n, vocab], flattened, that are seen as well."""
    penalties: Array
    """Float32 [n, 1]."""

    def apply(self, xp: Arrays, scores: Array) -> None:
        """See `Edit`."""
        if xp is NUMPY:  # few of a row's tokens were seen: those alone cost less than the row
            self._cells(scores.shape[-1]).apply(xp, scores)
            return
        seen = self.seen[self.sequences]
        xp.fill_rows(seen.reshape(-1), self.later, True)
        before = scores[self.rows]
        scores[self.rows] = xp.where(seen, _penalised(xp, before, self.penalties), before)

    def _cells(self, vocab_size: int) -> CellEdit:
        tokens = [np.flatnonzero(one) for one in self.seen]
        of_rows = [tokens[sequence] for sequence in self.sequences.tolist()]
        places, later = np.divmod(self.later, vocab_size)
        counts = [len(one) for one in of_rows]
        place_of = np.concatenate([np.repeat(np.arange(len(counts)), counts), places])
        cells = self.rows[place_of] * vocab_size + np.concatenate([*of_rows, later])
        return CellEdit(cells, self.penalties[place_of, 0], _penalised)


class SeenTokens:
    """Collects what rows have seen.

    Tokens at or above `vocab_size` are left out, as in `Cells`.
    """

    __slots__ = ("_later", "_penalties", "_rows", "_seen", "_sequences", "_vocab_size")

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._rows: list[int] = []
        self._sequences: list[int] = []
        self._seen: list[npt.NDArray[np.bool_]] = []
        self._later: list[int] = []
        self._penalties: list[float] = []

    def add(
        self,
        rows: range,
        token_ids: npt.NDArray[np.int64],
        penalty: float,
        *,
        later: npt.NDArray[np.int64],
    ) -> None:
        """Collect rows of one sequence.

        Args:
            rows: of the batch.
            token_ids: what the first of them sees.
            penalty: divides positive scores and multiplies negative ones.
            later: what each row sees more than the one before; may be shorter than the rows.
        """
        seen = np.zeros(self._vocab_size, np.bool_)
        seen[token_ids[token_ids < self._vocab_size]] = True
        size, first = self._vocab_size, len(self._rows)
        end = (first + len(rows)) * size
        for place, token in enumerate(later.tolist(), start=first + 1):
            if token < size and not seen[token]:  # for this row and all behind it
                self._later += range(place * size + token, end, size)
        self._sequences += [len(self._seen)] * len(rows)
        self._seen.append(seen)
        self._rows += rows
        self._penalties += [penalty] * len(rows)

    def edit(self) -> SeenEdit | None:
        """What is to be done; None where there is nothing."""
        if not self._rows:
            return None
        return SeenEdit(
            np.array(self._rows, np.int64),
            np.array(self._sequences, np.int64),
            np.stack(self._seen),
            np.array(self._later, np.int64),
            np.array(self._penalties, np.float32)[:, None],
        )


def _penalised(xp: Arrays, before: Array, penalties: Array) -> Array:
    return xp.where(before < 0, before * penalties, before / penalties)
