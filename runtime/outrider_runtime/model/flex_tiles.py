"""The rows of a ragged batch in tiles of one shape, and which blocks each tile reads.

A tile holds rows of one sequence, next to each other, and for each row all query heads that share a
key head: their keys are read once for all of them. Rows are laid out by index, and how many tiles
there are follows from shapes alone, so nothing waits for the device. Knows nothing of kernels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.nn.functional import pad

from outrider_runtime.model.paged_attention import PagedKeys

SLOTS = 32
"""Query slots of a tile, unless a key head has more query heads: enough for the verified drafts of
a usual model with grouped heads, few enough that a row alone is not mostly padding."""

_FAR = 1 << 30
"""A position beyond all others."""


class TileShape(NamedTuple):
    """How rows fill a tile."""

    key_heads: int
    repeats: int
    """Query heads of a key head: slots of a row, one after the other."""
    rows: int
    slots: int
    """Of a tile, a power of two; behind those of all rows come unused ones."""

    @classmethod
    def of(cls, *, heads: int, key_heads: int) -> TileShape:
        """Returns the shape for a layer with so many heads."""
        repeats = heads // key_heads
        slots = max(SLOTS, 1 << (repeats - 1).bit_length())
        return cls(key_heads, repeats, slots // repeats, slots)


class Tiles(NamedTuple):
    """Where rows are in the tiles of a batch. Tiles at the end may be of no sequence."""

    sequences: torch.Tensor
    """int64 [tiles], whose rows they hold; the number of sequences: nobody's."""
    positions: torch.Tensor
    """int32 [tiles, slots], within its sequence, of the row in each slot; -1: none."""
    rows: torch.Tensor
    """int64 [tiles, 1, slots], which of the batch's rows that is; any, if it is none."""
    heads: torch.Tensor
    """int64 [key heads, slots], and which of the query heads."""
    places: torch.Tensor
    """int64 [rows, heads], where all of these are in [tiles * key heads * slots]."""

    def fill(self, query: torch.Tensor) -> torch.Tensor:
        """[heads, rows, dim] -> [tiles, key heads, slots, dim]."""
        return query[self.heads, self.rows]

    def take(self, attended: torch.Tensor) -> torch.Tensor:
        """[tiles, key heads, slots, dim] -> [rows, heads, dim]."""
        return attended.flatten(0, 2)[self.places]


class Sight(NamedTuple):
    """What the rows of each tile see of the pool under one sliding window."""

    num_blocks: torch.Tensor
    """int32 [tiles, 1, 1]."""
    blocks: torch.Tensor
    """int32 [tiles, 1, 1, width], the blocks that hold any of it, in order; then zeros."""
    newest: torch.Tensor
    """int32 [tiles, slots], the last position that each slot sees."""
    hidden: torch.Tensor
    """int32 [tiles, slots], the last position before those that it sees."""


def lay_out(keys: PagedKeys, *, num_rows: int, shape: TileShape) -> Tiles:
    """Puts the rows of a batch into tiles.

    Args:
        keys: whose rows they are; a sequence may have none, and rows at the end no sequence.
        num_rows: of the batch.
        shape: of the tiles.
    """
    device, starts = keys.row_starts.device, keys.row_starts
    last = keys.lengths.shape[0] - 1
    counts = starts.diff()
    ends = ((counts + shape.rows - 1) // shape.rows).cumsum(0)
    firsts = pad(ends[:-1], (1, 0))
    tiles = torch.arange(_most_tiles(last + 1, num_rows, shape), device=device)
    sequences = torch.searchsorted(ends, tiles, right=True)
    of = sequences.clamp(max=last)
    within = torch.arange(shape.slots, device=device) // shape.repeats
    nth = (tiles - firsts[of])[:, None] * shape.rows + within
    real = (nth < counts[of, None]) & (within < shape.rows) & (sequences <= last)[:, None]
    rows = torch.arange(num_rows, dtype=starts.dtype, device=device)
    whose = torch.searchsorted(starts[1:].contiguous(), rows, right=True).clamp(max=last)
    before = rows - starts[whose]
    whole = torch.div(before, shape.rows, rounding_mode="floor")
    # Rows of no sequence lie anywhere.
    tile = (firsts[whose] + whole).clamp(max=len(tiles) - 1)
    first_slot = (before - whole * shape.rows) * shape.repeats
    heads = torch.arange(shape.key_heads * shape.repeats, device=device)
    places = (tile[:, None] * shape.key_heads + heads // shape.repeats) * shape.slots
    return Tiles(
        sequences=sequences,
        positions=torch.where(real, (keys.lengths - counts)[of, None] + nth, -1).int(),
        rows=torch.where(real, starts[of, None] + nth, 0).long()[:, None],
        heads=heads[:: shape.repeats, None]
        + torch.arange(shape.slots, device=device) % shape.repeats,
        places=places + first_slot[:, None] + heads % shape.repeats,
    )


def look(tiles: Tiles, keys: PagedKeys, *, window: int | None) -> Sight:
    """Finds the blocks that tiles need, and what of them is hidden from which row."""
    size, width = keys.block_size, keys.tables.shape[1]
    newest = tiles.positions.amax(1).long()
    oldest = tiles.positions[:, 0].long() - (_FAR if window is None else window - 1)
    first = oldest.clamp(min=0) // size
    num_blocks = torch.div(newest, size, rounding_mode="floor") + 1 - first
    # Of at least two, since a compiler would make a case of its own out of one.
    index = torch.arange(max(width, 2), device=newest.device)
    of = tiles.sequences.clamp(max=keys.tables.shape[0] - 1)
    blocks = keys.tables[of].gather(1, (first[:, None] + index).clamp(max=width - 1))
    blocks = torch.where(index < num_blocks[:, None], blocks, 0)
    return Sight(
        num_blocks=num_blocks.int()[:, None, None],
        blocks=blocks.int()[:, None, None],
        newest=tiles.positions,
        hidden=tiles.positions - (_FAR if window is None else window),
    )


def first_positions(keys: PagedKeys, *, num_blocks: int) -> torch.Tensor:
    """Where in each sequence the blocks of the pool begin: block tables the other way round.

    Args:
        keys: the tables.
        num_blocks: of the pool.

    Returns:
        int32 [sequences + 1, num_blocks + 1]. What is not a sequence's own lies beyond all its
        positions; so does everything for the last, which is nobody.
    """
    sequences, width = keys.tables.shape
    starts = torch.arange(width, dtype=torch.int32, device=keys.tables.device) * keys.block_size
    # What is behind the blocks of a sequence may be anything: it goes where nobody looks.
    used = torch.where(starts < keys.lengths[:, None], keys.tables, num_blocks)
    out = starts.new_full((sequences + 1, num_blocks + 1), _FAR)
    return out.scatter_(1, used.long(), starts.expand(sequences, -1))


def _most_tiles(sequences: int, rows: int, shape: TileShape) -> int:
    """Tiles that so many rows of so many sequences take at most, however they are spread.

    At least two, since a compiler would make a case of its own out of one.
    """
    least = min(sequences, rows)  # each with a row in a tile of its own
    return max(2, least + (rows - least) // shape.rows)
