"""Batches that a size of graphs has to hold: many sequences and few, the most rows and the least.

Knows nothing of what runs them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import cycle, islice

from outrider_runtime.model.batch import SequenceRows
from outrider_runtime.model.kv_pool import KVPool

_VERIFIED = 6
"""Rows of a sequence whose draft is verified."""
_LEAST_BLOCKS = 4
"""Of the pool for each sequence, where there are many."""


def rounds(
    numbers: range, *, pool: KVPool, token_ids: Sequence[int], max_model_len: int
) -> Iterator[list[SequenceRows]]:
    """Yields batches whose positions were appended to the pool; it is as before in the end.

    The first is a prompt over the end of a block, of any number of rows. Then sequences go on:
    one row of each, several of each, all rows of one.

    Args:
        numbers: of rows that batches may have.
        pool: where positions go.
        token_ids: at least one, to make texts of.
        max_model_len: positions that the model has.

    Raises:
        OutOfBlocks: the pool is too small for such batches.
    """
    least, most = numbers[0], numbers[-1]
    handles: list[int] = []
    tokens = cycle(token_ids)

    def deal(rows: int, each: int, turn: int) -> list[SequenceRows]:
        items: list[SequenceRows] = []
        place = 0
        while rows:
            if place == len(handles):
                handles.append(pool.create())
            handle = handles[place]
            place += 1
            count = min(each, rows, max_model_len - pool.length(handle))
            if count < 1:
                continue
            pool.append(handle, count)
            wanted = (count, 1, count // 2)[(turn + place) % 3]
            items.append(SequenceRows(handle, list(islice(tokens, count)), wanted))
            rows -= count
        return items

    # As many sequences as rows, if the pool has blocks for them.
    single = -(-most // max(1, pool.num_blocks // _LEAST_BLOCKS))
    prompt = pool.block_size + 3
    try:
        yield deal(prompt, prompt, 0)
        for turn, (rows, each) in enumerate(
            [(most, single), (least, _VERIFIED), ((least + most) // 2, most), (most, _VERIFIED)]
        ):
            yield deal(rows, each, turn)
    finally:
        for handle in handles:
            pool.free(handle)
