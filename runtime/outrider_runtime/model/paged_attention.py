"""Attention over keys and values where they lie in the pool, one call a layer: for GPUs.

Which kernel does the work is behind a port. Knows nothing of models, or of how batches are made.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch

from outrider_runtime.model.attention_weights import ScoreRule
from outrider_runtime.model.kv_storage import LayerKV


@dataclass(frozen=True, slots=True)
class PagedKeys:
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
    worked_out: dict[object, object] = field(default_factory=dict, init=False, compare=False)
    """What a kernel made of the others for one layer and needs in the next. So there is one object
    for each forward, even if its tensors are those of another with new numbers in them."""


class PagedAttention(Protocol):
    """Lets rows attend through a kernel that reads block tables."""

    name: str
    """Of the kernel, for the log."""

    def fits(self, kv: LayerKV, rule: ScoreRule) -> bool:
        """Returns whether the kernel can do what this layer asks for."""
        ...

    def attend(
        self, query: torch.Tensor, kv: LayerKV, keys: PagedKeys, rule: ScoreRule
    ) -> torch.Tensor:
        """Attention of a batch's rows, their own keys and values already in storage.

        Does not wait for the device, and looks at nothing but the shapes of `keys`, its block size
        and its bound of rows.

        Args:
            query: [1, heads, rows, key_dim].
            kv: a layer that `fits`.
            keys: whose rows they are.
            rule: how it scores keys.

        Returns:
            [1, rows, heads, value_dim]. Rows that belong to no sequence hold anything.
        """
        ...


class PagedKernel(NamedTuple):
    """A kernel that is there; whether it is used, its answers decide (`paged_proof`)."""

    attention: PagedAttention
    release: Callable[[], None] = lambda: None
    """What to call if it is not used after all."""
    otherwise: Callable[[], PagedKernel | None] = lambda: None
    """The next choice, to be asked for if it is not used."""


class KernelUnavailable(Exception):
    """There is no such kernel; says why in one line."""
