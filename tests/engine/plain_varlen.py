"""Torch's `varlen_attn` over block tables, written out from what its documentation promises."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from outrider_runtime.model.paged_attention import PagedKernel
from outrider_runtime.model.varlen_kernel import Varlen, VarlenAttention


class Call(NamedTuple):
    """What a call was told beside tensors of keys and queries."""

    max_q: int
    max_k: int
    window_size: tuple[int, int]
    num_splits: int | None
    reach: int
    """Positions that its block tables have room for."""


class PlainVarlen:
    """A stand-in for the kernel that remembers its calls. Rows of no sequence become NaN.

    Each row is computed by itself, so that its bits do not depend on the others.
    """

    def __init__(self) -> None:
        self.calls: list[Call] = []

    def __call__(
        self,
        query: torch.Tensor,  # [rows, heads, dim]
        key: torch.Tensor,  # [blocks, block size, key heads, dim]
        value: torch.Tensor,
        cu_seq_q: torch.Tensor,
        cu_seq_k: torch.Tensor | None,
        max_q: int,
        max_k: int,
        *,
        scale: float | None = None,
        window_size: tuple[int, int] = (-1, -1),
        enable_gqa: bool = False,
        seqused_k: torch.Tensor | None = None,
        block_table: torch.Tensor | None = None,
        num_splits: int | None = None,
    ) -> torch.Tensor:
        assert seqused_k is not None
        assert block_table is not None
        # As FlashAttention 3 does.
        assert cu_seq_k is None
        assert {cu_seq_q.dtype, seqused_k.dtype, block_table.dtype} == {torch.int32}
        assert query.stride(-1) == key.stride(-1) == value.stride(-1) == 1
        assert cu_seq_q.is_contiguous()
        assert seqused_k.is_contiguous()
        assert block_table.stride(-1) == 1
        assert enable_gqa or query.shape[1] == key.shape[2]
        reach = block_table.shape[1] * key.shape[1]
        self.calls.append(Call(max_q, max_k, window_size, num_splits, reach))
        out = torch.full_like(query, float("nan"))
        starts, lengths = cu_seq_q.tolist(), seqused_k.tolist()
        for i, length in enumerate(lengths):
            rows = slice(starts[i], starts[i + 1])
            count = rows.stop - rows.start
            assert count <= max_q
            assert count <= length <= max_k or count == 0
            if count:
                used = block_table[i, : -(-length // key.shape[1])].long()
                keys, values = (kv[used].flatten(0, 1)[:length] for kv in (key, value))
                for row in range(rows.start, rows.stop):
                    own = length - rows.stop + row
                    out[row] = _attend(
                        query[row], keys, values, own=own, scale=scale, window=window_size
                    )
        return out


class StaticVarlen:
    """The same without a look at any number, as a graph needs it. Remembers what it was told.

    A row's bits depend on its own keys alone: sums run over as many as there may be, seen or not.
    """

    def __init__(self) -> None:
        self.told: set[tuple[int, int]] = set()

    def __call__(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        cu_seq_q: torch.Tensor,
        cu_seq_k: None,
        max_q: int,
        max_k: int,
        *,
        scale: float,
        window_size: tuple[int, int],
        enable_gqa: bool,
        seqused_k: torch.Tensor,
        block_table: torch.Tensor,
        num_splits: int,
    ) -> torch.Tensor:
        self.told.add((max_q, max_k))
        size, (num_rows, heads, _), key_heads = key.shape[1], query.shape, key.shape[2]
        row = torch.arange(num_rows)
        found = torch.searchsorted(cu_seq_q[1:].long(), row, right=True)
        sequence = found.clamp(max=len(seqused_k) - 1)  # [rows]
        length = seqused_k[sequence, None]
        own = length - cu_seq_q[sequence + 1, None] + row[:, None]  # [rows, 1]
        at = torch.arange(max_k)
        tables = block_table[sequence].long()
        block = tables.gather(1, (at // size).clamp(max=tables.shape[1] - 1).expand(num_rows, -1))
        hidden = (at > own) | (found > sequence)[:, None]  # [rows, keys]
        if window_size[0] >= 0:
            hidden = hidden | (at < own - window_size[0])
        slot = torch.where(hidden, 0, block * size + at % size)
        shape = (num_rows, max_k, key_heads, heads // key_heads, -1)
        keys, values = (
            torch.where(hidden[:, :, None, None], 0, kv.flatten(0, 1)[slot])[:, :, :, None]
            .expand(shape)
            .flatten(2, 3)
            .transpose(1, 2)  # [rows, heads, keys, dim]
            for kv in (key, value)
        )
        scores = (query[:, :, None] * keys).sum(3) * scale
        weights = scores.masked_fill(hidden[:, None], float("-inf")).softmax(2)
        return (weights[..., None] * values).sum(2)


def _attend(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    *,
    own: int,
    scale: float | None,
    window: tuple[int, int],
) -> torch.Tensor:
    """One row, at position `own`: it sees from `own` - left to `own` + right."""
    repeats = query.shape[0] // keys.shape[1]
    keys, values = (kv.repeat_interleave(repeats, 1) for kv in (keys, values))
    scores = torch.einsum("hd,khd->hk", query, keys)
    scores = scores * (query.shape[-1] ** -0.5 if scale is None else scale)
    at = torch.arange(len(keys))
    left, right = window
    hidden = torch.zeros(len(keys), dtype=torch.bool)
    if left >= 0:
        hidden |= at < own - left
    if right >= 0:
        hidden |= at > own + right
    weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
    return torch.einsum("hk,khd->hd", weights, values)


def varlen_kernel(varlen: Varlen, release: Callable[[], None] = lambda: None) -> PagedKernel:
    """A kernel on a stand-in."""
    return PagedKernel(VarlenAttention(varlen), release)
