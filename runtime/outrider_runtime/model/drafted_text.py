"""Committed tokens with a draft behind them, without a copy of what may be a long text.

Knows nothing of what is done with it: most rows are chosen without a look at the text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any, overload

import numpy as np
import numpy.typing as npt


class DraftedText(Sequence[int]):
    """One text made of two. Good until the first of them changes: for a round.

    Args:
        committed: its beginning.
        draft: its end.
    """

    def __init__(self, committed: Sequence[int], draft: Sequence[int]) -> None:
        self._committed = committed
        self._draft = draft
        self._num_committed = len(committed)

    def __len__(self) -> int:
        return self._num_committed + len(self._draft)

    def __iter__(self) -> Iterator[int]:
        return chain(self._committed, self._draft)

    @overload
    def __getitem__(self, index: int) -> int: ...

    @overload
    def __getitem__(self, index: slice) -> list[int]: ...

    def __getitem__(self, index: int | slice) -> int | list[int]:
        border = self._num_committed
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            if step != 1:
                return [*self][index]
            own = self._committed[start : min(stop, border)]
            return [*own, *self._draft[max(0, start - border) : max(0, stop - border)]]
        index = range(len(self))[index]
        return self._committed[index] if index < border else self._draft[index - border]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        """For numpy, which would ask for one token after the other."""
        return np.array([*self], dtype=dtype)
