"""A change to the scores of a batch: worked out on the host, made where the scores live.

What a processor makes of prefixes and options is small and comes as numpy arrays; all edits of a
batch travel together (`Arrays.send`), then each is applied without another look at the host.
"""

from __future__ import annotations

from typing import Protocol

from outrider_runtime.model.arrays import Array, Arrays


class Edit(Protocol):
    """A named tuple of small arrays, and what to do with them."""

    def apply(self, xp: Arrays, scores: Array) -> None:
        """Change the scores in place.

        Args:
            xp: where the scores live, and by now the edit's arrays.
            scores: [rows, vocab] of the batch.
        """
