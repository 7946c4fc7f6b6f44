"""Which sequences of a ragged batch attend together, and what their padded rows may see.

Everything here depends on block tables, lengths and the sliding window alone, so it is computed
once per forward and shared by all layers. Knows nothing of models, heads or scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

SHORT_ROWS = 16
"""Sequences with at most this many new rows (decoding, verification) share a padded batch; longer
ones (prefill chunks) attend alone, since padding the others to their row count would cost more."""

MAX_PADDING = 512
"""Key positions of padding that a group may hold. A further group costs, in calls, about as much as
attending to some hundred positions."""


class Span(NamedTuple):
    """One sequence of a batch: rows [first_row, first_row + num_rows) are positions from `past`."""

    first_row: int
    num_rows: int
    past: int
    table: Sequence[int]

    @property
    def length(self) -> int:
        """Positions of the sequence, the new rows included."""
        return self.past + self.num_rows


class RowIndex(NamedTuple):
    """Where the padded rows of a group come from and where the real ones go."""

    sources: torch.Tensor
    """int64 [size * num_rows], the batch row that each padded row repeats."""
    real: torch.Tensor | None
    """int64, which padded rows are no padding; None: all."""
    targets: torch.Tensor
    """int64, the batch rows of the real ones."""


class AttentionGroup:
    """Sequences that attend together, padded to equally many rows and equally many keys.

    Padding repeats the sequence's own last row and its own last slot, so that nothing another
    sequence wrote, not even NaN, can reach it; and no row, padded or not, is masked completely.

    Attributes:
        size: sequences.
        num_rows: rows per sequence, padding included.
        num_keys: key positions per sequence, padding included.
        index: where rows come from and go; None: the whole batch, in order, without padding.
        slots: int64 [size * num_keys], the slots to gather; or the first slot, where those of a
            single sequence are consecutive.
        is_causal_square: one sequence from its first position on, seen whole: plain causal
            attention, no mask needed.
    """

    def __init__(
        self,
        spans: Sequence[Span],
        *,
        whole_batch: bool,
        window: int | None,
        block_size: int,
        device: torch.device,
    ) -> None:
        # The first key that the first row of each sequence sees.
        starts = [0 if window is None else max(0, span.past + 1 - window) for span in spans]
        self.size = len(spans)
        self.num_rows = max(span.num_rows for span in spans)
        self.num_keys = max(s.length - start for s, start in zip(spans, starts, strict=True))
        self._spans = spans
        self._starts = starts
        self._window = window
        self._device = device
        self._biases: dict[tuple[int, torch.dtype], torch.Tensor | None] = {}

        only = spans[0]
        self.is_causal_square = (
            self.size == 1
            and only.past == 0
            and self.num_rows > 1
            and (window is None or window >= only.num_rows)
        )
        even = all(span.num_rows == self.num_rows for span in spans)
        self.index = None if whole_batch and even else self._index_rows()
        first_slot = _first_slot(only, start=starts[0], block_size=block_size)
        self.slots: torch.Tensor | int = (
            first_slot
            if self.size == 1 and first_slot is not None
            else self._gather_slots(block_size)
        )

    def bias(self, repeats: int, *, dtype: torch.dtype) -> torch.Tensor | None:
        """Returns what to add to the scores: 0 where a row may look, -inf where it may not.

        Args:
            repeats: how often each sequence's rows are repeated (query heads per key head).
            dtype: dtype of the scores.

        Returns:
            [size, 1, repeats * num_rows, num_keys], the repeats outermost; None if all may be seen.
        """
        key = (repeats, dtype)
        if key not in self._biases:
            self._biases[key] = self._make_bias(repeats, dtype=dtype)
        return self._biases[key]

    def _make_bias(self, repeats: int, *, dtype: torch.dtype) -> torch.Tensor | None:
        even = all(
            span.length - start == self.num_keys
            for span, start in zip(self._spans, self._starts, strict=True)
        )
        if self.num_rows == 1 and even:
            return None
        starts = torch.tensor(self._starts, device=self._device)
        row = torch.arange(self.num_rows, device=self._device)
        last = torch.tensor([[s.past, s.length - 1] for s in self._spans], device=self._device)
        # A padded row looks from where the last real one does.
        seen_to = torch.minimum(last[:, :1] + row, last[:, 1:])[:, :, None]  # [size, rows, 1]
        keys = torch.arange(self.num_keys, device=self._device)
        keys = starts[:, None, None] + keys  # [size, 1, keys]
        hidden = keys > seen_to
        if self._window is not None:
            hidden |= keys <= seen_to - self._window
        bias = torch.zeros(hidden.shape, dtype=dtype, device=self._device)
        bias.masked_fill_(hidden, float("-inf"))
        return bias.repeat(1, repeats, 1)[:, None]

    def _index_rows(self) -> RowIndex:
        sources: list[int] = []
        real: list[int] = []
        targets: list[int] = []
        for i, span in enumerate(self._spans):
            own = range(span.first_row, span.first_row + span.num_rows)
            sources += own
            sources += [own[-1]] * (self.num_rows - span.num_rows)
            real += range(i * self.num_rows, i * self.num_rows + span.num_rows)
            targets += own
        even = len(targets) == len(sources)
        return RowIndex(
            sources=torch.tensor(sources, device=self._device),
            real=None if even else torch.tensor(real, device=self._device),
            targets=torch.tensor(targets, device=self._device),
        )

    def _gather_slots(self, block_size: int) -> torch.Tensor:
        longest = max(len(span.table) for span in self._spans)
        tables = torch.tensor(
            [[*span.table, *[0] * (longest - len(span.table))] for span in self._spans],
            device=self._device,
        )
        bounds = torch.tensor(
            [[start, s.length - 1] for s, start in zip(self._spans, self._starts, strict=True)],
            device=self._device,
        )
        positions = bounds[:, :1] + torch.arange(self.num_keys, device=self._device)
        positions = torch.minimum(positions, bounds[:, 1:])  # [size, keys]
        blocks = tables.gather(1, positions // block_size)
        return (blocks * block_size + positions % block_size).view(-1)


def group_spans(
    spans: Sequence[Span], *, window: int | None, block_size: int, device: torch.device
) -> list[AttentionGroup]:
    """Splits a batch into groups that attend together, each at little waste.

    Args:
        spans: the sequences of the batch.
        window: sliding window in positions (a row sees itself and window - 1 before it), or None.
        block_size: positions per block of the tables.
        device: where index tensors go.
    """
    parts: list[list[int]] = [[i] for i, span in enumerate(spans) if span.num_rows > SHORT_ROWS]
    reach = [s.length if window is None else min(s.length, window + s.num_rows - 1) for s in spans]
    short = [i for i, span in enumerate(spans) if span.num_rows <= SHORT_ROWS]
    short.sort(key=lambda i: -reach[i])
    current: list[int] = []
    padding = 0
    for i in short:
        padding += reach[current[0]] - reach[i] if current else 0
        if padding > MAX_PADDING:
            parts.append(current)
            current, padding = [], 0
        current.append(i)
    if current:
        parts.append(current)
    return [
        AttentionGroup(
            [spans[i] for i in sorted(part)],
            whole_batch=len(parts) == 1,
            window=window,
            block_size=block_size,
            device=device,
        )
        for part in parts
    ]


def _first_slot(span: Span, *, start: int, block_size: int) -> int | None:
    """The slot of position `start`, if all slots from there to the end are consecutive."""
    table = span.table
    first = start // block_size
    run = range(table[first], table[first] + len(table) - first)
    if list(run) != list(table[first:]):
        return None
    return table[first] * block_size + start % block_size
