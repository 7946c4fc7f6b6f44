"""Whether graphs give what the model gives, seen at load on batches of every size.

Two questions. A graph has to give the same bits as the same padded forward run in Python: whatever
it did not see of a batch shows here. And the padded forward has to give what the batch gives alone,
up to rounding: products of five rows and of eight may take different paths on a GPU, as they do for
any two batches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from outrider_runtime.model.batch import RaggedBatch, SequenceRows
from outrider_runtime.model.causal_bias import CausalBias
from outrider_runtime.model.graphed.rounds import rounds
from outrider_runtime.model.graphed.sizes import fits
from outrider_runtime.model.graphed.step import GraphedStep, RunModel
from outrider_runtime.model.kv_pool import KVPool, OutOfBlocks
from outrider_runtime.model.kv_storage import KVStorage

_TOLERANCE = {torch.bfloat16: 5e-2, torch.float16: 2e-2}
_TOLERANCE_OF_OTHERS = 1e-3
"""Largest difference of a row's logits, relative to its largest one: what rounding makes of a whole
model. Rows that read or write in the wrong place have nothing in common."""
_MOST_OFF = 1 / 8
"""Of a size's rows, how many may be off by more: where rounding turns the choice of an expert."""


class Proof:
    """Runs batches in Python, padded in Python, and as graphs.

    Works on the storage that the graphs were recorded with: nobody may be served meanwhile.

    Args:
        step: the graphs.
        model: runs a forward in Python.
        storage: of `num_blocks` blocks that sequences may have, at least.
        num_blocks: blocks of the pool.
        block_size: positions per block.
        token_ids: at least one, to make texts of.
        bias: tables of the device and the precision of the model.
        max_model_len: positions that the model has.

    Attributes:
        worst: largest difference between padded and not, relative to a row's largest logit.
    """

    def __init__(
        self,
        step: GraphedStep,
        model: RunModel,
        *,
        storage: KVStorage,
        num_blocks: int,
        block_size: int,
        token_ids: Sequence[int],
        bias: CausalBias,
        max_model_len: int,
    ) -> None:
        self.worst = 0.0
        self._step = step
        self._model = model
        self._storage = storage
        self._num_blocks = num_blocks
        self._block_size = block_size
        self._token_ids = token_ids
        self._bias = bias
        self._max_model_len = max_model_len

    def possible(self, size: int) -> bool:
        """Returns whether the pool has room for batches of a size: else it needs no graph."""
        try:
            for _ in self._rounds(size, self._pool()):
                pass
        except OutOfBlocks:
            return False
        return True

    def fault(self, size: int) -> str | None:
        """Returns what speaks against the graph of a size; None: nothing."""
        off: list[torch.Tensor] = []
        pool = self._pool()
        for items in self._rounds(size, pool):
            batch = RaggedBatch(
                items, pool=pool, bias=self._bias, device=self._bias.device, first_positions={}
            )
            alone = self._model(batch, self._storage)
            if batch.num_rows not in fits(size):
                continue
            padded = self._step.run_in_python(batch, size)
            kept = self._keys(batch)
            for rows in self._storage.layers:
                rows[batch.write_slots] = 0
            replayed = self._step.replay(batch, size)
            pairs = [(replayed, padded), *zip(self._keys(batch), kept, strict=True)]
            if not all(torch.equal(one, other) for one, other in pairs):
                return f"of {size} rows it does not give the same bits as the step run in Python"
            off.append(_off(padded, alone))
        every = torch.cat(off)
        worst = float(every.max())
        self.worst = max(self.worst, worst)
        tolerance = _TOLERANCE.get(self._bias.dtype, _TOLERANCE_OF_OTHERS)
        if float((every > tolerance).double().mean()) > _MOST_OFF:
            return f"padded to {size} rows, some are off by {worst:.1e} of their largest score"
        return None

    def _pool(self) -> KVPool:
        return KVPool(self._num_blocks, self._block_size)

    def _rounds(self, size: int, pool: KVPool) -> Iterator[list[SequenceRows]]:
        return rounds(
            fits(size), pool=pool, token_ids=self._token_ids, max_model_len=self._max_model_len
        )

    def _keys(self, batch: RaggedBatch) -> list[torch.Tensor]:
        """Of each layer, the keys and values of the batch's rows."""
        return [rows[batch.write_slots] for rows in self._storage.layers]


def _off(actual: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """[rows, vocab] -> [rows]."""
    expected, actual = expected.double(), actual.double()
    largest = expected.abs().amax(1).clamp(min=torch.finfo(torch.float32).tiny)
    return ((actual - expected).abs().amax(1) / largest).nan_to_num(nan=float("inf"))
