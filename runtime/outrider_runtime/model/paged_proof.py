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
from outrider_runtime.model.rehearsal import rehearse

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
    paged = PagedAttention(kernel.attend)
    # Over the end of a block, where the model has the positions for it.
    prompt = max(1, min(max(19, block_size + 3), max_model_len - 9))
    worst, layers = 0.0, 0

    def watched(batch: RaggedBatch, own: KVStorage) -> torch.Tensor:
        nonlocal worst, layers
        comparison = _Comparison(paged, batch, own)
        logits = run(batch, own, comparison)
        worst, layers = max(worst, comparison.worst), comparison.layers
        return logits

    try:
        rehearse(
            watched,
            storage=storage,
            block_size=block_size,
            token_ids=token_ids,
            bias=bias,
            prompt=prompt,
        )
        why = f"a row is off by {worst:.1e} of its largest number"
        right = worst <= _TOLERANCE.get(bias.dtype, _TOLERANCE_OF_OTHERS)
    except Exception as fault:  # kernels of others, which raise what they like
        why, right = str(fault).partition("\n")[0], False
    if right and not layers:
        why, right = "no layer of this model can use it", False
    if right:
        _log.info("paged_attention_adopted", layers=layers, off=round(worst, 6))
        return paged
    kernel.release()
    _log.warning("paged_attention_rejected", why=why)
    return None


class _Comparison:
    """Attends both ways wherever a layer attends.

    Attributes:
        worst: Largest relative difference of a row.
        layers: That could be compared.
    """

    def __init__(self, paged: PagedAttention, batch: RaggedBatch, storage: KVStorage) -> None:
        self._paged = paged
        self._batch = batch
        self._storage = storage
        self.worst = 0.0
        self.layers = 0

    def record(self, query: torch.Tensor, kv: LayerKV, rule: ScoreRule) -> None:
        """See `attention.Watcher`."""
        if not self._paged.fits(kv, rule):
            return
        self.layers += 1
        short = None if rule.window is None else min(rule.window, _SHORT_WINDOW)
        for window in {rule.window, short}:
            own = rule._replace(window=window)
            expected = gathered_attention(
                query, kv, own, batch=self._batch, storage=self._storage
            ).double()
            actual = self._paged.attend(query, kv, self._batch.paged_keys, own).double()
            # [1, rows, heads, dim] -> [rows]
            # Some ids, the padding's for one, have values of zeros.
            scale = expected.abs().amax((0, 2, 3)).clamp(min=torch.finfo(torch.float32).tiny)
            off = (actual - expected).abs().amax((0, 2, 3)) / scale
            self.worst = max(self.worst, float(off.nan_to_num(nan=float("inf")).max()))
