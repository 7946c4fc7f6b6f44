"""Whether paged attention gives what attention gives without it: seen at load, on a model's rows.

Layer by layer, on the same queries and keys, so that a mistake cannot hide in what rounding makes
of whole models.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import structlog
import torch

from outrider_runtime.model.attention import Watcher, gathered_attention
from outrider_runtime.model.attention_weights import ScoreRule
from outrider_runtime.model.batch import RaggedBatch
from outrider_runtime.model.causal_bias import CausalBias
from outrider_runtime.model.kv_storage import KVStorage, LayerKV
from outrider_runtime.model.paged_attention import PagedAttention
from outrider_runtime.model.paged_kernel import PagedKernel
from outrider_runtime.model.rehearsal import PROMPT, rehearse

_log = structlog.get_logger(__name__)

_TOLERANCE = {torch.bfloat16: 3e-2, torch.float16: 4e-3}
_TOLERANCE_OF_OTHERS = 1e-4
"""Largest difference in a row of a layer, relative to its largest number: rounding of scores and
sums is a few units in the last place, a key too many or too few is far above."""

_SHORT_WINDOW = 5
"""Windows of models are longer than the texts of a rehearsal, so a short one is tried beside."""

RunWatched = Callable[[RaggedBatch, KVStorage, Watcher], torch.Tensor]


def adopt(
    kernel: PagedKernel,
    run: RunWatched,
    *,
    storage: KVStorage,
    block_size: int,
    token_ids: Sequence[int],
    bias: CausalBias,
    max_model_len: int,
) -> PagedAttention | None:
    """Compares, and takes the kernel if it gives the same; else a log line says why not.

    Args:
        kernel: what there is; released if it is not taken.
        run: runs a forward without it, with a watcher.
        storage: whose layers are used; its content is not.
        block_size: positions per block.
        token_ids: at least one, to make texts of.
        bias: tables of the device and the precision of the model.
        max_model_len: positions that the model has.
    """
    comparison = _Comparison(PagedAttention(kernel.attend))

    def watched(batch: RaggedBatch, own: KVStorage) -> torch.Tensor:
        comparison.begin(batch, own)
        return run(batch, own, comparison)

    rehearse(
        watched,
        storage=storage,
        block_size=block_size,
        token_ids=token_ids,
        bias=bias,
        max_model_len=max_model_len,
        prompt=max(PROMPT, block_size + 3),  # over the end of a block
    )
    tolerance = _TOLERANCE.get(bias.dtype, _TOLERANCE_OF_OTHERS)
    if (why := comparison.verdict(tolerance)) is None:
        _log.info("paged_attention_adopted", off=round(comparison.worst, 6))
        return comparison.paged
    kernel.release()
    _log.warning("paged_attention_rejected", why=why)
    return None


class _Comparison:
    """Attends both ways wherever a layer attends.

    Attributes:
        paged: What is compared.
        worst: Largest relative difference of a row; -1 before there was any.
    """

    def __init__(self, paged: PagedAttention) -> None:
        self.paged = paged
        self.worst = -1.0
        self._fault: str | None = None
        self._rows: tuple[RaggedBatch, KVStorage] | None = None

    def begin(self, batch: RaggedBatch, storage: KVStorage) -> None:
        """The batch whose layers attend next."""
        self._rows = batch, storage

    def verdict(self, tolerance: float) -> str | None:
        """Returns what speaks against it; None: nothing."""
        if self._fault is not None:
            return self._fault
        if self.worst < 0:
            return "no layer of this model can use it"
        if self.worst > tolerance:
            return f"a row is off by {self.worst:.1e} of its largest number"
        return None

    def record(self, query: torch.Tensor, kv: LayerKV, rule: ScoreRule) -> None:
        """See `attention.Watcher`."""
        if self._fault is not None or not self.paged.fits(kv, rule):
            return
        short = None if rule.window is None else min(rule.window, _SHORT_WINDOW)
        try:
            for window in {rule.window, short}:
                self.worst = max(self.worst, self._off(query, kv, rule._replace(window=window)))
        except Exception as fault:  # kernels of others, which raise what they like
            # Kept, so that the forward goes on: other ranks may be in the middle of it.
            self._fault = str(fault).partition("\n")[0]

    def _off(self, query: torch.Tensor, kv: LayerKV, rule: ScoreRule) -> float:
        assert self._rows is not None
        batch, storage = self._rows
        expected = gathered_attention(query, kv, rule, batch=batch, storage=storage).double()
        actual = self.paged.attend(query, kv, batch.paged_keys, rule).double()
        # [1, rows, heads, dim] -> [rows]. Some ids, the padding's for one, have values of zeros.
        largest = expected.abs().amax((0, 2, 3)).clamp(min=torch.finfo(torch.float32).tiny)
        off = (actual - expected).abs().amax((0, 2, 3)) / largest
        return float(off.nan_to_num(nan=float("inf")).max())
