"""Torch's `flex_attention` over block masks, written out from what its documentation promises."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from outrider_runtime.model.flex_kernel import Flex, FlexAttention
from outrider_runtime.model.paged_attention import PagedKernel
from torch.nn.attention.flex_attention import BlockMask

Change = Callable[..., torch.Tensor]


class Call(NamedTuple):
    """What a call was given."""

    tiles: int
    slots: int
    scale: float
    told_lse: bool


class PlainFlex:
    """A stand-in for the kernel that remembers its calls.

    It reads the blocks that the mask names, one after the other, and nothing else; sums are made
    as the kernel makes them. What of a block is hidden is weighed with 0, and 0 times NaN is NaN.
    """

    def __init__(self, *, scale: float | None = None) -> None:
        self.calls: list[Call] = []
        self._scale = scale

    def __call__(
        self,
        query: torch.Tensor,  # [tiles, key heads, slots, dim]
        key: torch.Tensor,  # [1, key heads, slots of the pool, dim]
        value: torch.Tensor,
        score_mod: Change | None = None,
        block_mask: BlockMask | None = None,
        scale: float | None = None,
        enable_gqa: bool = False,
        kernel_options: dict[str, Any] | None = None,
        *,
        return_lse: bool = False,
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        assert block_mask is not None
        assert scale is not None
        assert query.shape[1] == key.shape[1] == value.shape[1]
        assert key.shape[0] == 1
        assert block_mask.seq_lengths == (query.shape[2], key.shape[2])
        assert block_mask.BLOCK_SIZE[0] == query.shape[2]
        assert {block_mask.kv_num_blocks.dtype, block_mask.kv_indices.dtype} == {torch.int32}
        assert block_mask.kv_indices.shape[:3] == (len(query), 1, 1)
        self.calls.append(Call(len(query), query.shape[2], scale, return_lse))
        out = query.new_empty(*query.shape[:3], value.shape[3])
        lse = query.new_empty(query.shape[:3])
        for tile, count in enumerate(block_mask.kv_num_blocks.flatten().tolist()):
            blocks = block_mask.kv_indices[tile, 0, 0, :count].tolist()
            sums = _Sums(query.shape[1:3], value)
            for block in blocks:
                slots = torch.arange(block_mask.BLOCK_SIZE[1]) + block * block_mask.BLOCK_SIZE[1]
                scores = query[tile] @ key[0, :, slots].mT * (self._scale or scale)
                index = (
                    torch.tensor(tile),
                    torch.arange(query.shape[1])[:, None, None],
                    torch.arange(query.shape[2])[:, None],
                    slots,
                )
                if score_mod is not None:
                    scores = score_mod(scores, *index)
                sums.add(
                    scores.masked_fill(~block_mask.mask_mod(*index), float("-inf")),
                    value[0, :, slots],
                )
            out[tile], lse[tile] = sums.result()
        return (out, lse) if return_lse else out


class _Sums:
    """Of weighted values, over blocks of keys."""

    def __init__(self, rows: torch.Size, values: torch.Tensor) -> None:
        self._highest = torch.full((*rows, 1), float("-inf"))
        self._weights = torch.zeros(*rows, 1)
        self._values = torch.zeros(*rows, values.shape[3])

    def add(self, scores: torch.Tensor, values: torch.Tensor) -> None:
        highest = torch.maximum(self._highest, scores.float().amax(2, keepdim=True))
        safe = highest.masked_fill(highest == float("-inf"), 0)
        before, weights = (self._highest - safe).exp(), (scores.float() - safe).exp()
        self._weights = self._weights * before + weights.sum(2, keepdim=True)
        self._values = self._values * before + weights @ values.float()
        self._highest = highest

    def result(self) -> tuple[torch.Tensor, torch.Tensor]:
        weights = self._weights.masked_fill(self._weights == 0, 1)
        return self._values / weights, (self._highest + weights.log())[..., 0]


def flex_kernel(plain: PlainFlex) -> PagedKernel:
    """A kernel on a stand-in."""
    flex = Flex(plain, BlockMask, {"return_lse": True}, {})
    return PagedKernel(FlexAttention(flex, compiled=False))
