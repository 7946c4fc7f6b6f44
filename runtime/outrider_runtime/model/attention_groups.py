"""Which sequences of a ragged batch attend together, and where each group reads its keys.

Everything here depends on block tables, lengths and the sliding window alone, so it is computed
once per forward and shared by all layers. Knows nothing of models, heads or scores.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import torch

from outrider_runtime.model.causal_bias import SHORT_ROWS, CausalBias

IN_PLACE_KEYS = 256
"""Keys from which a sequence in consecutive slots is read where it lies, at the price of a call of
its own, rather than copied together with others into one padded read. On the CPU the two cost about
the same at 300 keys of 256 numbers per layer; with wider keys copying loses earlier."""

MAX_PADDING = 512
"""Keys of padding that a shared read may hold; beyond that a further read is cheaper."""


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


class Placement(NamedTuple):
    """How batches are laid out: what all groups of all forwards have in common."""

    block_size: int
    device: torch.device
    bias: CausalBias


class KeyRead:
    """The keys of some sequences, fetched by one read, right-aligned to equal length.

    A padded key repeats the sequence's own first one and is hidden, so nothing that another
    sequence wrote, not even NaN, can reach a row.

    Attributes:
        size: sequences.
        num_keys: keys per sequence, padding included.
        slots: int64 [size * num_keys], the slots to gather; or the first slot, where those of a
            single sequence are consecutive.
        is_causal_square: one sequence from its first position on, seen whole: plain causal
            attention, no bias needed.
    """

    def __init__(
        self, spans: Sequence[Span], *, num_rows: int, window: int | None, where: Placement
    ) -> None:
        # The first key that the first row of each sequence sees.
        starts = [0 if window is None else max(0, span.past + 1 - window) for span in spans]
        keys = [span.length - start for span, start in zip(spans, starts, strict=True)]
        self.size = len(spans)
        self.num_keys = max(keys)
        self._missing = [self.num_keys - count for count in keys]
        self._num_rows = num_rows
        self._window = window
        self._where = where
        self._biases: dict[int, torch.Tensor | None] = {}
        self.is_causal_square = self.size == 1 and self.num_keys == num_rows > 1 and starts[0] == 0
        if window is not None and window < num_rows:
            self.is_causal_square = False
        first_slot = (
            _first_slot(spans[0], start=starts[0], block_size=where.block_size)
            if self.size == 1
            else None
        )
        self.slots: torch.Tensor | int = (
            self._gather_slots(spans, starts) if first_slot is None else first_slot
        )

    def bias(self, repeats: int) -> torch.Tensor | None:
        """Returns what to add to the scores of the group's rows, each repeated so many times.

        Returns:
            [size or 1, 1, num_rows * repeats, num_keys]; None if every row sees every key.
        """
        if repeats not in self._biases:
            self._biases[repeats] = self._make_bias(repeats)
        return self._biases[repeats]

    def _make_bias(self, repeats: int) -> torch.Tensor | None:
        padded = any(self._missing)
        if self._num_rows == 1 and not padded:
            return None
        bias = self._where.bias.last_rows(
            self._num_rows, num_keys=self.num_keys, window=self._window, repeats=repeats
        )
        if not padded:
            return bias
        missing = torch.tensor(self._missing, device=bias.device)[:, None]
        hidden = torch.arange(self.num_keys, device=bias.device) < missing  # [size, keys]
        return bias.masked_fill(hidden[:, None, None], float("-inf"))

    def _gather_slots(self, spans: Sequence[Span], starts: Sequence[int]) -> torch.Tensor:
        block_size = self._where.block_size
        longest = max(len(span.table) for span in spans)
        # Per sequence: first key, length, and for each block how far its slots are from positions.
        rows = [
            [start, span.length]
            + [(block - i) * block_size for i, block in enumerate(span.table)]
            + [0] * (longest - len(span.table))
            for span, start in zip(spans, starts, strict=True)
        ]
        facts = torch.tensor(rows, device=self._where.device)
        positions = facts[:, 1:2] + torch.arange(-self.num_keys, 0, device=self._where.device)
        positions = torch.maximum(positions, facts[:, :1])  # [size, keys]
        return (positions + facts[:, 2:].gather(1, positions // block_size)).view(-1)


class AttentionGroup:
    """Sequences whose rows are computed together, right-aligned to equally many rows.

    Attributes:
        size: sequences.
        num_rows: rows per sequence; padding, at the front, repeats a sequence's first row.
        index: where rows come from and go; None: the whole batch, in order, without padding.
        reads: the keys, in the order of the sequences.
    """

    def __init__(
        self,
        spans: Sequence[Span],
        *,
        in_place: bool,
        whole_batch: bool,
        window: int | None,
        where: Placement,
    ) -> None:
        self.size = len(spans)
        self.num_rows = max(span.num_rows for span in spans)
        even = all(span.num_rows == self.num_rows for span in spans)
        self.index = None if whole_batch and even else self._index_rows(spans, where.device)
        self.reads = [
            KeyRead(part, num_rows=self.num_rows, window=window, where=where)
            for part in ([[span] for span in spans] if in_place else [spans])
        ]

    def _index_rows(self, spans: Sequence[Span], device: torch.device) -> RowIndex:
        sources: list[int] = []
        real: list[int] = []
        targets: list[int] = []
        for span in spans:
            own = range(span.first_row, span.first_row + span.num_rows)
            sources += [own[0]] * (self.num_rows - span.num_rows)
            real += range(len(sources), len(sources) + span.num_rows)
            sources += own
            targets += own
        even = len(targets) == len(sources)
        return RowIndex(
            sources=torch.tensor(sources, device=device),
            real=None if even else torch.tensor(real, device=device),
            targets=torch.tensor(targets, device=device),
        )


def group_spans(
    spans: Sequence[Span], *, window: int | None, where: Placement
) -> list[AttentionGroup]:
    """Splits a batch into groups, each computed at little waste.

    Args:
        spans: the sequences of the batch.
        window: sliding window in positions (a row sees itself and window - 1 before it), or None.
        where: how batches are laid out.
    """
    reach = [s.length if window is None else min(s.length, window + s.num_rows - 1) for s in spans]
    in_place: defaultdict[int, list[int]] = defaultdict(list)  # by number of rows
    alone: list[list[int]] = []
    short: list[int] = []
    for i, span in enumerate(spans):
        start = span.length - reach[i]
        consecutive = _first_slot(span, start=start, block_size=where.block_size) is not None
        if consecutive and reach[i] >= IN_PLACE_KEYS:
            in_place[span.num_rows].append(i)
        elif span.num_rows > SHORT_ROWS:
            # A prefill chunk: padding others to its row count would cost more than a call.
            alone.append([i])
        else:
            short.append(i)
    parts = [(part, True) for part in in_place.values()]
    parts += [(part, False) for part in alone + _split_by_padding(short, reach)]
    return [
        AttentionGroup(
            [spans[i] for i in part],
            in_place=separate,
            whole_batch=len(parts) == 1,
            window=window,
            where=where,
        )
        for part, separate in parts
    ]


def _split_by_padding(members: Sequence[int], reach: Sequence[int]) -> list[list[int]]:
    """Splits sequences so that no part needs more than `MAX_PADDING` keys of padding."""
    parts: list[list[int]] = []
    padding = 0
    for i in sorted(members, key=lambda member: -reach[member]):
        padding += reach[parts[-1][0]] - reach[i] if parts else 0
        if not parts or padding > MAX_PADDING:
            parts.append([])
            padding = 0
        parts[-1].append(i)
    return [sorted(part) for part in parts]


def _first_slot(span: Span, *, start: int, block_size: int) -> int | None:
    """The slot of position `start`, if all slots from there to the end are consecutive."""
    first = start // block_size
    blocks = list(span.table[first:])
    if blocks != list(range(blocks[0], blocks[0] + len(blocks))):
        return None
    return blocks[0] * block_size + start % block_size
