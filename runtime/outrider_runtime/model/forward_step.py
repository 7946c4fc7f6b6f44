"""A forward as it is told to other ranks: what to run, and where everything is in the pool.

Each step says all of it, so that ranks hold nothing between steps but keys and values.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from outrider_runtime.model.batch import SequenceRows
from outrider_runtime.model.kv_pool import BlockCopy, KVPool, slots_of
from outrider_runtime.model.layer_reading import LayerReading


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

    def to_message(self) -> bytes:
        """For a rank that has no pool. JSON: it can hold nothing that runs."""
        tables = {item.handle: self.places.table(item.handle) for item in self.batch}
        told = {
            "batch": [
                [item.handle, list(item.token_ids), item.num_logits, *map(_asked, item.readings)]
                for item in self.batch
            ],
            "num_layers": self.num_layers,
            "first_positions": list(self.first_positions.items()),
            "copies": self.copies,
            "block_size": self.places.block_size,
            "tables": [[handle, table.tolist()] for handle, table in tables.items()],
            "lengths": [[handle, self.places.length(handle)] for handle in tables],
        }
        return json.dumps(told, separators=(",", ":")).encode()

    @classmethod
    def from_message(cls, message: bytes) -> ForwardStep:
        """What `to_message` told."""
        told = json.loads(message)
        return cls(
            [
                SequenceRows(handle, token_ids, num_logits, [LayerReading(*one) for one in asked])
                for handle, token_ids, num_logits, *asked in told["batch"]
            ],
            told["num_layers"],
            dict(told["first_positions"]),
            [BlockCopy(*copy) for copy in told["copies"]],
            ToldPlaces(
                told["block_size"],
                {handle: array("q", table) for handle, table in told["tables"]},
                dict(told["lengths"]),
            ),
        )


def _asked(reading: LayerReading) -> list[Any]:
    """A reading without its answer."""
    return [reading.num_rows, list(reading.hidden_of), list(reading.logits_of), reading.weights]
