"""A forward as it is told to other ranks: what to run, and where everything is in the pool.

Each step says all of it, so that ranks hold nothing between steps but keys and values.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from outrider_runtime.model.batch import SequenceRows
from outrider_runtime.model.kv_pool import BlockCopy, KVPool, slots_of


class ToldPlaces(NamedTuple):
    """Where the sequences of a step are: what a `RaggedBatch` asks of a pool."""

    block_size: int
    tables: Mapping[int, array[int]]
    lengths: Mapping[int, int]

    def length(self, handle: int) -> int:
        """See `KVPool.length`."""
        return self.lengths[handle]

    def table(self, handle: int) -> array[int]:
        """See `KVPool.table`."""
        return self.tables[handle]

    def slots(self, handle: int, start: int, stop: int) -> list[int]:
        """See `KVPool.slots`."""
        return slots_of(self.tables[handle], self.block_size, range(start, stop))


class ForwardStep(NamedTuple):
    """The arguments of `RaggedRunner.forward`, and what the pool made of them."""

    batch: Sequence[SequenceRows]
    num_layers: int | None
    first_positions: Mapping[int, int]
    copies: Sequence[BlockCopy]
    places: KVPool | ToldPlaces

    def told(self) -> ForwardStep:
        """The same for a rank that has no pool."""
        batch = [item._replace(token_ids=list(item.token_ids)) for item in self.batch]
        handles = [item.handle for item in batch]
        places = ToldPlaces(
            self.places.block_size,
            {handle: self.places.table(handle) for handle in handles},
            {handle: self.places.length(handle) for handle in handles},
        )
        return self._replace(batch=batch, places=places)
