"""Where recorded forwards read what differs between batches: filled anew before each replay.

Knows nothing of models or graphs.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from outrider_runtime.model.batch import RaggedBatch
from outrider_runtime.model.graphed.static_batch import StaticBatch
from outrider_runtime.model.paged_attention import PagedKeys

_WIDE = 4
"""Numbers of 64 bit for each row: token, position, slot, and a row whose logits are wanted."""


class StaticMemory:
    """The memory of all sizes: one batch runs at a time, so they share it.

    Rows of padding are sequences of one token, in a block that no sequence has. So they compute
    numbers like any others, write where nobody reads and read nothing that somebody wrote.

    Args:
        device: where the model is.
        most_rows: of the largest size.
        most_blocks: of the longest sequence.
        block_size: positions per block.
        spare_block: a block of the storage that no sequence ever has.
    """

    def __init__(
        self,
        *,
        device: torch.device,
        most_rows: int,
        most_blocks: int,
        block_size: int,
        spare_block: int,
    ) -> None:
        on_gpu = device.type == "cuda"
        self._device = device
        self._block_size = block_size
        self._spare_block = spare_block
        # Of a size: what is of 64 bit, where sequences begin, how long they are, their blocks.
        words = _facts(most_rows) + most_rows * most_blocks
        self._host = torch.zeros(words, dtype=torch.int32, pin_memory=on_gpu)
        self._sent = torch.zeros(words, dtype=torch.int32, device=device)
        self._tables = torch.full(
            (most_rows, most_blocks), spare_block, dtype=torch.int32, device=device
        )
        self._arrived: torch.cuda.Event | None = None
        if on_gpu:
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]

    def batch(self, size: int) -> StaticBatch:
        """Returns a batch of so many rows, at the same addresses every time."""
        starts = 2 * _WIDE * size
        lengths = starts + size + 1
        return StaticBatch(
            self._sent[:starts].view(torch.int64).view(_WIDE, size),
            PagedKeys(
                row_starts=self._sent[starts:lengths],
                lengths=self._sent[lengths : lengths + size],
                # As wide as any will ever be: wider than needed does no harm.
                tables=self._tables[:size],
                block_size=self._block_size,
                most_rows=size,
            ),
        )

    def fill(self, batch: RaggedBatch | None, size: int) -> None:
        """Copies a batch to the device, padded to so many rows; None: nothing but padding.

        Returns before it has arrived: what is started afterwards sees it.
        """
        if self._arrived is not None:
            self._arrived.synchronize()  # the device may still be fetching the last one
        blocks = 1 if batch is None else batch.widest
        used = _facts(size) + size * blocks
        self._write(self._host[:used].numpy(), batch, size, blocks)
        self._sent[:used].copy_(self._host[:used], non_blocking=True)
        if self._arrived is not None:
            self._arrived.record(torch.cuda.current_stream(self._device))
        # Sent narrow and spread out there: most of a wide table is never read.
        self._tables[:size, :blocks].copy_(self._sent[_facts(size) : used].view(size, blocks))

    def _write(
        self, words: npt.NDArray[np.int32], batch: RaggedBatch | None, size: int, blocks: int
    ) -> None:
        starts = 2 * _WIDE * size
        wide = words[:starts].view(np.int64).reshape(_WIDE, size)
        row_starts = words[starts : starts + size + 1]
        lengths = words[starts + size + 1 : _facts(size)]
        tables = words[_facts(size) :].reshape(size, blocks)
        wide[:] = 0
        wide[2] = self._spare_block * self._block_size
        tables[:] = self._spare_block
        rows = sequences = row_starts[0] = 0
        if batch is not None:
            rows, sequences = batch.num_rows, len(batch.spans)
            wide[:3, :rows] = batch.table[:3]
            wide[3, : len(batch.wanted)] = batch.wanted
            row_starts[1 : sequences + 1] = [s.first_row + s.num_rows for s in batch.spans]
            lengths[:sequences] = [span.length for span in batch.spans]
            batch.fill(tables)
        # A sequence for each row of padding; those behind have neither rows nor keys.
        padding = size - rows
        row_starts[sequences + 1 : sequences + padding + 1] = range(rows + 1, size + 1)
        row_starts[sequences + padding + 1 :] = size
        lengths[sequences : sequences + padding] = 1
        lengths[sequences + padding :] = 0


def _facts(size: int) -> int:
    """Words of a size in front of its block tables."""
    return 2 * _WIDE * size + size + 1 + size
