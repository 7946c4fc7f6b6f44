"""Whether paged attention gives what attention gives without it: seen at load, on a model's rows.

Layer by layer, on the same queries and keys, so that a mistake cannot hide in what rounding makes
of whole models. The last row of each sequence attends once more by itself: its bits must be the
same, or what else is in a batch, drafts above all, could change a text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import structlog
import torch

from outrider_runtime.model.attention import Watcher, gathered_attention
from outrider_runtime.model.attention_weights import ScoreRule
from outrider_runtime.model.batch import RaggedBatch
from outrider_runtime.model.causal_bias import CausalBias
from outrider_runtime.model.kv_storage import KVStorage, LayerKV
from outrider_runtime.model.paged_attention import PagedAttention, PagedKernel
from outrider_runtime.model.rehearsal import rehearse

_log = structlog.get_logger(__name__)

_TOLERANCE = {torch.bfloat16: 3e-2, torch.float16: 4e-3}
_TOLERANCE_OF_OTHERS = 1e-4
"""Largest difference in a row of a layer, relative to its largest number: rounding of scores and
sums is a few units in the last place, a key too many or too few is far above."""

_SHORT_WINDOW = 5
"""Windows of models are longer than the texts of a rehearsal, so a short one is tried beside."""

_PROMPT = 37
"""Tokens of the longest text at first: more rows than a kernel of ours takes together."""

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
    """Compares, and takes the first kernel that gives the same; else log lines say why not.

    Args:
        kernel: the first choice; what is not taken is released.
        run: runs a forward without it, with a watcher.
        storage: whose layers are used; its content is not.
        block_size: positions per block.
        token_ids: at least one, to make texts of.
        bias: tables of the device and the precision of the model.
        max_model_len: positions that the model has.
    """
    choice: PagedKernel | None = kernel
    while choice is not None:
        comparison = _Comparison(choice.attention, run)
        rehearse(
            comparison.forward,
            storage=storage,
            block_size=block_size,
            token_ids=token_ids,
            bias=bias,
            max_model_len=max_model_len,
            prompt=max(_PROMPT, block_size + 3),  # over the end of a block
        )
        name = choice.attention.name
        tolerance = _TOLERANCE.get(bias.dtype, _TOLERANCE_OF_OTHERS)
        if (why := comparison.verdict(tolerance)) is None:
            _log.info("paged_attention_adopted", kernel=name, off=round(comparison.worst, 6))
            return choice.attention
        choice.release()
        _log.warning("paged_attention_rejected", kernel=name, why=why)
        choice = choice.otherwise()
    return None


class _Comparison:
    """Attends both ways wherever a layer attends.

    Attributes:
        paged: What is compared.
        worst: Largest relative difference of a row; -1 before there was any.
        steady: Whether rows had the same bits by themselves.
    """

    def __init__(self, paged: PagedAttention, run: RunWatched) -> None:
        self.paged = paged
        self._run = run
        self.worst = -1.0
        self.steady = True
        self._fault: str | None = None
        self._rows: tuple[RaggedBatch, KVStorage] | None = None

    def forward(self, batch: RaggedBatch, storage: KVStorage) -> torch.Tensor:
        """Runs a forward without the kernel, and compares what its layers attend."""
        self._rows = batch, storage
        return self._run(batch, storage, self)

    def verdict(self, tolerance: float) -> str | None:
        """Returns what speaks against it; None: nothing."""
        if self._fault is not None:
            return self._fault
        if self.worst < 0:
            return "no layer of this model can use it"
        if self.worst > tolerance:
            return f"a row is off by {self.worst:.1e} of its largest number"
        if not self.steady:
            return "the bits of a row depend on what else is in the batch"
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
        keys = batch.paged_keys
        attended = self.paged.attend(query, kv, keys, rule)
        self.steady = self.steady and all(
            torch.equal(attended[0, last], self._alone(query, kv, rule, sequence=i, row=last))
            for i, last in enumerate((keys.row_starts[1:] - 1).tolist())
        )
        actual = attended.double()
        # [1, rows, heads, dim] -> [rows]. Some ids, the padding's for one, have values of zeros.
        largest = expected.abs().amax((0, 2, 3)).clamp(min=torch.finfo(torch.float32).tiny)
        off = (actual - expected).abs().amax((0, 2, 3)) / largest
        return float(off.nan_to_num(nan=float("inf")).max())

    def _alone(
        self, query: torch.Tensor, kv: LayerKV, rule: ScoreRule, *, sequence: int, row: int
    ) -> torch.Tensor:
        """[heads, dim] of the last row of a sequence, in a batch without the others."""
        assert self._rows is not None
        keys = self._rows[0].paged_keys
        own = replace(
            keys,
            row_starts=torch.tensor([0, 1], dtype=torch.int32, device=query.device),
            lengths=keys.lengths[sequence : sequence + 1],
            tables=keys.tables[sequence : sequence + 1],
            most_rows=1,
        )
        return self.paged.attend(query[:, :, row : row + 1], kv, own, rule)[0, 0]
