"""Attention over keys and values where they lie in the pool, one call a layer: for GPUs.

Knows nothing of models, of how batches are made, or of which kernel does the work.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from outrider_runtime.model.attention_weights import ScoreRule
from outrider_runtime.model.kv_storage import LayerKV

Attend = Callable[..., torch.Tensor]
"""What `torch.nn.attention.varlen.varlen_attn` takes and returns, pages included."""

_FEW_ROWS = 256
"""Kernels choose other tiles for few rows, for a single one above all. They are told of at least so
many, more than any such rule looks at: the choice, and with it a row's bits, is then always one."""


class PagedKeys(NamedTuple):
    """Whose rows are whose, and where the keys of each sequence are: the same for all layers."""

    row_starts: torch.Tensor
    """int32 [sequences + 1], the first row of each sequence, and the end of the last one's."""
    lengths: torch.Tensor
    """int32 [sequences], positions of each, new rows included: its rows are the last of them."""
    tables: torch.Tensor
    """int32 [sequences, blocks], the blocks of each in order; what is behind them is not read."""
    block_size: int
    most_rows: int
    """At least the rows of any sequence."""


class PagedAttention:
    """Lets rows attend through a kernel that reads block tables.

    Args:
        attend: the kernel.
    """

    def __init__(self, attend: Attend) -> None:
        self._attend = attend

    @staticmethod
    def fits(kv: LayerKV, rule: ScoreRule) -> bool:
        """Returns whether the kernel can do what this layer asks for."""
        return rule.softcap is None and rule.sinks is None and kv.key_dim == kv.value_dim

    def attend(
        self, query: torch.Tensor, kv: LayerKV, keys: PagedKeys, rule: ScoreRule
    ) -> torch.Tensor:
        """Attention of a batch's rows, their own keys and values already in storage.

        Args:
            query: [1, heads, rows, dim].
            kv: a layer that `fits`.
            keys: whose rows they are.
            rule: how it scores keys.

        Returns:
            [1, rows, heads, dim]. Rows that belong to no sequence hold anything.
        """
        # A slot's row holds the keys of all heads, then the values.
        stored = kv.rows.view(-1, keys.block_size, 2, kv.num_heads, kv.key_dim)
        out = self._attend(
            query[0].transpose(0, 1),
            stored[:, :, 0],
            stored[:, :, 1],
            keys.row_starts,
            None,  # where keys begin, the tables say
            max(keys.most_rows, _FEW_ROWS),
            kv.rows.shape[0],  # of any sequence: one bound for all batches, see `_FEW_ROWS`
            scale=rule.scaling,
            # Of the kernel's window the row itself is no part. Rows and keys are aligned at the
            # end of a sequence, so the last row sees up to the last key.
            window_size=(-1 if rule.window is None else rule.window - 1, 0),
            enable_gqa=query.shape[1] > kv.num_heads,
            seqused_k=keys.lengths,
            block_table=keys.tables,
            # Split keys are summed up in parts whose number follows from the whole batch: a row's
            # bits would depend on its company, and drafts could change a text.
            num_splits=1,
        )
        return out[None]
