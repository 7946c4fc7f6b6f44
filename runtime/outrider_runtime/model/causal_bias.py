"""What the rows of a sequence may see, as terms to add to their scores: 0 or minus infinity.

A row may see itself, what is before it, and with a sliding window only the nearest of those. Told
by the distance from a sequence's end this is the same for every sequence, so one table serves all
short groups of rows, of all forwards: a bias is a view of its lower right corner. Knows nothing of
batches or slots.
"""

from __future__ import annotations

import torch

SHORT_ROWS = 16
"""Most rows per sequence that the tables hold: decoding and verification, not prefill."""


class CausalBias:
    """Tables of biases for the last rows of a sequence over its last keys.

    Args:
        device: where the tables are.
        dtype: that of the scores.

    Attributes:
        device: where the tables are.
        dtype: that of the scores.
    """

    def __init__(self, *, device: torch.device, dtype: torch.dtype) -> None:
        self.device = device
        self.dtype = dtype
        self._tables: dict[tuple[int | None, int], torch.Tensor] = {}

    def last_rows(
        self, num_rows: int, *, num_keys: int, window: int | None, repeats: int = 1
    ) -> torch.Tensor:
        """Returns the bias of a sequence's last rows over its last keys.

        Args:
            num_rows: rows, the last of which is the sequence's last position.
            num_keys: keys, the last of which is the sequence's last position.
            window: positions that a row sees, itself included; None: all.
            repeats: how often each row is repeated (query heads per key head).

        Returns:
            [1, 1, num_rows * repeats, num_keys], repeats innermost. A row that would lie before the
            first key sees nothing.
        """
        if num_rows > SHORT_ROWS:
            return self._build(num_rows, num_keys=num_keys, window=window, repeats=repeats)
        table = self._tables.get((window, repeats))
        if table is None or table.shape[3] < num_keys:
            # Powers of two, so that a growing sequence seldom builds a new one.
            width = 1 << max(8, (num_keys - 1).bit_length())
            table = self._build(SHORT_ROWS, num_keys=width, window=window, repeats=repeats)
            self._tables[window, repeats] = table
        return table[:, :, -num_rows * repeats :, -num_keys:]

    def _build(
        self, num_rows: int, *, num_keys: int, window: int | None, repeats: int
    ) -> torch.Tensor:
        keys = torch.arange(num_keys, device=self.device)
        rows = torch.arange(num_keys - num_rows, num_keys, device=self.device)[:, None]
        hidden = keys > rows
        if window is not None:
            hidden |= keys <= rows - window
        bias = torch.zeros(hidden.shape, dtype=self.dtype, device=self.device)
        bias.masked_fill_(hidden, float("-inf"))
        return bias.repeat_interleave(repeats, 0)[None, None]
