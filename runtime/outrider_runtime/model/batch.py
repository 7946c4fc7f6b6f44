"""One ragged forward: the rows of all its sequences, one after the other in one flat batch.

A batch mixes single-token decodes, verifications of several drafted tokens and prefill chunks. It
is built right after the pool made room, and computes what all layers share exactly once. Knows
nothing of models, heads or scores.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch

from outrider_runtime.model.attention_groups import (
    AttentionGroup,
    Placement,
    Span,
    group_spans,
)
from outrider_runtime.model.causal_bias import CausalBias
from outrider_runtime.model.layer_reading import LayerReading
from outrider_runtime.model.paged_attention import PagedKeys


class SequenceRows(NamedTuple):
    """The new tokens of one sequence, and for how many of its last rows logits are wanted."""

    handle: int
    token_ids: Sequence[int]
    num_logits: int
    readings: Sequence[LayerReading] = ()
    """What else is wanted of its last rows; filled by the forward."""


class Places(Protocol):
    """Where sequences are; see `KVPool`."""

    @property
    def block_size(self) -> int:
        """Positions per block."""
        ...

    def length(self, handle: int) -> int:
        """Positions of the sequence."""
        ...

    def table(self, handle: int) -> array[int]:
        """Its blocks, in order."""
        ...

    def slots(self, handle: int, start: int, stop: int) -> list[int]:
        """The slots of some of its positions."""
        ...


class Pages(NamedTuple):
    """Where the rows of a batch and the positions of its sequences are, for the CPU kernels."""

    rows_of: torch.Tensor
    """int64 [2, rows]: of each row its sequence and its position there."""
    tables: torch.Tensor
    """int64 [sequences, blocks]: the blocks of each sequence, in order; padded with 0."""
    block_size: int


class RaggedBatch:
    """Metadata of one forward.

    Args:
        items: the sequences, their new positions already appended to the pool.
        pool: where their slots are.
        bias: tables of biases, kept over forwards.
        device: where the tensors go.
        first_positions: by handle, the position of a sequence's first token where it is not 0.

    Attributes:
        num_rows: rows of all sequences.
        table: int64 [5, rows], on the host: of each row its token, its position, the slot where its
            keys and values go, its sequence in the batch and its place there.
        wanted: the rows whose logits are wanted.
        spans: of each sequence its rows and its blocks.
    """

    def __init__(
        self,
        items: Sequence[SequenceRows],
        *,
        pool: Places,
        bias: CausalBias,
        device: torch.device,
        first_positions: Mapping[int, int],
    ) -> None:
        self._where = Placement(block_size=pool.block_size, device=device, bias=bias)
        self._groups: dict[int | None, list[AttentionGroup]] = {}
        self._pages: Pages | None = None
        self._paged_keys: PagedKeys | None = None
        self.spans: list[Span] = []
        self.wanted: list[int] = []
        tokens: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        sequences: list[int] = []
        indices: list[int] = []
        for number, item in enumerate(items):
            count, length = len(item.token_ids), pool.length(item.handle)
            past, first = length - count, len(tokens)
            self.spans.append(Span(first, count, past, pool.table(item.handle)))
            tokens += item.token_ids
            shift = first_positions.get(item.handle, 0)
            positions += range(shift + past, shift + length)
            slots += pool.slots(item.handle, past, length)
            sequences += [number] * count
            indices += range(past, length)
            self.wanted += range(first + count - item.num_logits, first + count)
        self.num_rows = len(tokens)
        self.table: npt.NDArray[np.int64] = np.array(
            [tokens, positions, slots, sequences, indices], dtype=np.int64
        )

    @cached_property
    def input_ids(self) -> torch.Tensor:
        """int64 [1, rows]."""
        return self._sent[:1]

    @cached_property
    def position_ids(self) -> torch.Tensor:
        """int64 [1, rows], counted within each sequence."""
        return self._sent[1:2]

    @cached_property
    def write_slots(self) -> torch.Tensor:
        """int64 [rows], where each row's keys and values go."""
        return self._sent[2]

    @cached_property
    def logits_rows(self) -> torch.Tensor | None:
        """int64 [wanted rows], or None: all rows."""
        if len(self.wanted) == self.num_rows:
            return None
        return torch.tensor(self.wanted, dtype=torch.int64, device=self._where.device)

    @cached_property
    def _sent(self) -> torch.Tensor:
        """The table where the model is: one transfer for all of it, once somebody asks."""
        return torch.from_numpy(self.table).to(self._where.device)

    @property
    def windows(self) -> frozenset[int | None]:
        """The sliding windows that `groups` was asked for."""
        return frozenset(self._groups)

    def groups(self, window: int | None) -> list[AttentionGroup]:
        """Returns which sequences attend together under this sliding window (None: no window)."""
        groups = self._groups.get(window)
        if groups is None:
            groups = self._groups[window] = group_spans(
                self.spans, window=window, where=self._where
            )
        return groups

    @property
    def pages(self) -> Pages:
        """Where everything is; computed once for all layers."""
        if self._pages is None:
            tables = np.zeros((len(self.spans), self.widest), dtype=np.int64)
            self.fill(tables)
            self._pages = Pages(
                rows_of=self._sent[3:],
                tables=torch.from_numpy(tables).to(self._where.device),
                block_size=self._where.block_size,
            )
        return self._pages

    @property
    def paged_keys(self) -> PagedKeys:
        """Where everything is, for paged attention; computed once for all layers."""
        if self._paged_keys is None:
            count = len(self.spans)
            facts = np.zeros(2 * count + 1 + count * self.widest, dtype=np.int32)
            facts[1 : count + 1] = [span.first_row + span.num_rows for span in self.spans]
            facts[count + 1 : 2 * count + 1] = [span.length for span in self.spans]
            self.fill(facts[2 * count + 1 :].reshape(count, -1))
            # One transfer for all of them.
            sent = torch.from_numpy(facts).to(self._where.device)
            self._paged_keys = PagedKeys(
                row_starts=sent[: count + 1],
                lengths=sent[count + 1 : 2 * count + 1],
                tables=sent[2 * count + 1 :].view(count, -1),
                block_size=self._where.block_size,
                most_rows=max(span.num_rows for span in self.spans),
            )
        return self._paged_keys

    @property
    def widest(self) -> int:
        """Blocks of the longest sequence."""
        return max(len(span.table) for span in self.spans)

    def fill(self, tables: npt.NDArray[Any]) -> None:
        """Writes the block tables to the first rows of an array [sequences or more, blocks]."""
        for row, span in zip(tables, self.spans, strict=False):
            row[: len(span.table)] = span.table  # of a long text too: copied, not converted


def last_places(pool: Places, handles: Sequence[int], count: int) -> npt.NDArray[np.int64]:
    """Where the last positions of sequences are: what a `RaggedBatch` says of rows, but for tokens.

    Returns:
        [count, 4, sequences]: of each position the position, its slot, its sequence here and its
        place there.
    """
    places = np.empty((count, 4, len(handles)), dtype=np.int64)
    for number, handle in enumerate(handles):
        length = pool.length(handle)
        places[:, 0, number] = places[:, 3, number] = range(length - count, length)
        places[:, 1, number] = pool.slots(handle, length - count, length)
        places[:, 2, number] = number
    return places
