"""The key/value tensors of a pool: one per layer, addressed by slot.

Knows nothing of sequences, block tables or attention. Layers appear when they are first written,
because only the model knows the shapes of its keys and values (grouped heads, Dk != Dv, layers that
differ): they are measured, never guessed from a config.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from outrider_runtime.model.kv_pool import BlockCopy


@dataclass(frozen=True, slots=True)
class LayerKV:
    """Keys and values of one layer, side by side in one row per slot: one gather reads both."""

    rows: torch.Tensor  # [num_slots, num_heads * (key_dim + value_dim)]
    keys: torch.Tensor  # view [num_slots, num_heads, 1, key_dim]
    values: torch.Tensor  # view [num_slots, num_heads, 1, value_dim]
    num_heads: int
    key_dim: int
    value_dim: int


class KVStorage:
    """Per-layer key/value tensors of `num_blocks * block_size` slots.

    Storage starts at zeros and holds only what the model wrote: a masked slot contributes weight 0
    times a finite number, never NaN.

    Args:
        num_blocks: blocks of the pool.
        block_size: slots per block.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self._num_blocks = num_blocks
        self._block_size = block_size
        self._layers: dict[int, LayerKV] = {}
        self._scratch: torch.Tensor | None = None

    @property
    def num_slots(self) -> int:
        """Slots per layer."""
        return self._num_blocks * self._block_size

    @property
    def bytes_per_token(self) -> int:
        """Bytes that one position takes over all layers; 0 before the first forward."""
        return sum(kv.rows.shape[1] * kv.rows.element_size() for kv in self._layers.values())

    @property
    def layers(self) -> list[torch.Tensor]:
        """Of each layer, in order, its rows [num_slots, width]."""
        return [self._layers[index].rows for index in sorted(self._layers)]

    def resized(self, num_blocks: int) -> KVStorage:
        """Returns empty storage of another size, with all layers this one has seen."""
        other = KVStorage(num_blocks, self._block_size)
        for layer, kv in self._layers.items():
            other._layers[layer] = other._new_layer(kv.keys, kv.values)
        return other

    def write(
        self, layer: int, keys: torch.Tensor, *, values: torch.Tensor, slots: torch.Tensor
    ) -> LayerKV:
        """Writes new keys and values and returns the layer.

        Args:
            layer: layer index.
            keys: [1, num_heads, rows, key_dim], the layout attention functions are called with.
            values: [1, num_heads, rows, value_dim].
            slots: int64 [rows], where each row goes.

        Raises:
            RuntimeError: the shapes do not fit what this layer holds.
        """
        kv = self.layer(layer, keys, values=values)
        kv.keys.index_copy_(0, slots, keys.transpose(0, 2))  # [rows, num_heads, 1, dim]
        kv.values.index_copy_(0, slots, values.transpose(0, 2))
        return kv

    def layer(self, layer: int, keys: torch.Tensor, *, values: torch.Tensor) -> LayerKV:
        """Returns a layer, made for keys and values of these shapes if it is new; see `write`."""
        kv = self._layers.get(layer)
        if kv is None:
            kv = self._layers[layer] = self._new_layer(keys.transpose(0, 2), values.transpose(0, 2))
        return kv

    def gather(self, kv: LayerKV, slots: torch.Tensor) -> torch.Tensor:
        """Returns a copy of the rows of `slots`, [len(slots), width], good until the next call."""
        # A new tensor of megabytes per layer costs more in page faults than the copy itself.
        size = slots.shape[0] * kv.rows.shape[1]
        scratch = self._scratch
        if scratch is None or scratch.shape[0] < size:
            scratch = self._scratch = kv.rows.new_empty(1 << (size - 1).bit_length())
        rows = scratch[:size].view(slots.shape[0], -1)
        return torch.index_select(kv.rows, 0, slots, out=rows)

    def copy_blocks(self, copies: Sequence[BlockCopy]) -> None:
        """Performs the copies of copy on write in every layer.

        A source is never a destination of the same call: destinations come from the free list.
        """
        if not copies or not self._layers:
            return
        device = next(iter(self._layers.values())).rows.device
        src = torch.tensor([copy.src for copy in copies], device=device)
        dst = torch.tensor([copy.dst for copy in copies], device=device)
        for kv in self._layers.values():
            blocks = kv.rows.view(self._num_blocks, -1)
            blocks.index_copy_(0, dst, blocks.index_select(0, src))

    def _new_layer(self, keys: torch.Tensor, values: torch.Tensor) -> LayerKV:
        """For keys [any, num_heads, 1, key_dim] and values [any, num_heads, 1, value_dim]."""
        num_heads, key_dim, value_dim = keys.shape[1], keys.shape[3], values.shape[3]
        if values.shape[1] != num_heads:
            raise RuntimeError(f"{num_heads} key heads but {values.shape[1]} value heads")
        rows = keys.new_zeros(self.num_slots, num_heads * (key_dim + value_dim))
        split = num_heads * key_dim
        return LayerKV(
            rows=rows,
            keys=rows[:, :split].view(-1, num_heads, 1, key_dim),
            values=rows[:, split:].view(-1, num_heads, 1, value_dim),
            num_heads=num_heads,
            key_dim=key_dim,
            value_dim=value_dim,
        )
