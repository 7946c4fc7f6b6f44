"""The attention function that transformers calls in place of its own.

Transformers (5.17 and later) looks attention functions up by name in `AttentionInterface`. Under a
name that has no entry in its mask interface it builds no mask at all and hands over queries, keys
and values of the new rows only. So this function writes the keys and values to the pool's storage
and lets every row attend to its own sequence's slots.

For small models a forward on the CPU is mostly dispatch, so the sequences of a group are computed
together wherever that saves calls, and everything that does not depend on the layer was computed
beforehand (see `attention_groups`). Knows nothing of scheduling or of whole models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple, Protocol, cast

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from outrider_runtime.model.attention_groups import AttentionGroup, KeyRead
from outrider_runtime.model.attention_weights import ScoreRule
from outrider_runtime.model.batch import RaggedBatch
from outrider_runtime.model.causal_bias import SHORT_ROWS
from outrider_runtime.model.kv_storage import KVStorage, LayerKV
from outrider_runtime.model.paged_attention import PagedAttention

ATTENTION_NAME = "outrider_ragged"

# Arguments that models pass along without effect on an evaluation forward.
_HARMLESS = frozenset({"dropout", "position_ids"})


class Watcher(Protocol):
    """Looks on as layers attend."""

    def record(self, query: torch.Tensor, kv: LayerKV, rule: ScoreRule) -> None:
        """Takes a layer's queries [1, heads, rows, key_dim], its keys already in storage."""
        ...


class ForwardContext(NamedTuple):
    """What the attention function needs beside its arguments."""

    batch: RaggedBatch
    storage: KVStorage
    watcher: Watcher | None
    """Told of each layer; None: nobody wants to know."""
    kernels: bool
    """Whether the CPU kernels are loaded and fit the model."""
    paged: PagedAttention | None
    """For layers that it fits."""


# Not a keyword argument of the model: some models (StableLM, Nemotron) drop what they don't know.
_CONTEXT: ContextVar[ForwardContext | None] = ContextVar("outrider_forward", default=None)


@contextmanager
def forward_context(
    batch: RaggedBatch,
    storage: KVStorage,
    watcher: Watcher | None = None,
    *,
    kernels: bool = False,
    paged: PagedAttention | None = None,
) -> Iterator[None]:
    """Makes `ragged_attention` work on this batch, in this thread, within the block."""
    token = _CONTEXT.set(ForwardContext(batch, storage, watcher, kernels, paged))
    try:
        yield
    finally:
        _CONTEXT.reset(token)


class _Layer(NamedTuple):
    """What is the same for all groups of a call."""

    kv: LayerKV
    storage: KVStorage
    scaling: float
    softcap: float | None
    sinks: torch.Tensor | None  # [heads]


def ragged_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **others: object,
) -> tuple[torch.Tensor, None]:
    """Attention of new rows over their sequences' cached positions.

    Args:
        module: the layer's attention module; its `layer_idx` chooses the storage.
        query: [1, heads, rows, key_dim].
        key: [1, key_heads, rows, key_dim], new rows only.
        value: [1, key_heads, rows, value_dim], new rows only.
        attention_mask: must be None; see the module's docstring.
        scaling: factor of the scores, default key_dim ** -0.5.
        sliding_window: positions a row sees, itself included; None: all.
        softcap: bound c of the scores, c * tanh(score / c) (Gemma 2).
        s_aux: [heads], attention sinks: a score that takes part in the softmax only (gpt-oss).
        **others: flags and what has no effect on the result. Tensors and numbers are refused: they
            would be a bias, or a choice of keys.

    Returns:
        [1, rows, heads, value_dim], and None in place of the attention weights.

    Raises:
        RuntimeError: called outside a forward of the runner, or with arguments it does not know.
    """
    context = _CONTEXT.get()
    if context is None:
        raise RuntimeError("a model that the engine has taken over runs only through its runner")
    for name, given in others.items():
        if not (given is None or isinstance(given, bool) or name in _HARMLESS):
            raise RuntimeError(f"attention is given {name}, which the engine does not know")
    if attention_mask is not None or query.shape[0] != 1:
        raise RuntimeError("the model brings a mask of its own, or splits the flat batch")
    batch, storage, watcher, kernels, paged = context
    scaling = query.shape[3] ** -0.5 if scaling is None else scaling
    rule = ScoreRule(scaling, softcap, s_aux, sliding_window)
    index = cast("int", module.layer_idx)
    if kernels and softcap is None and s_aux is None:
        kv = storage.layer(index, key, values=value)
        pages = batch.pages
        out: torch.Tensor = torch.ops.outrider.attend(
            query,
            key,
            value,
            kv.rows,
            batch.write_slots,
            pages.rows_of,
            pages.tables,
            pages.block_size,
            scaling,
            sliding_window or 0,
        )
        if watcher is not None:
            watcher.record(query, kv, rule)
        return out, None
    kv = storage.write(index, key, values=value, slots=batch.write_slots)
    if watcher is not None:
        watcher.record(query, kv, rule)
    if paged is not None and paged.fits(kv, rule):
        return paged.attend(query, kv, batch.paged_keys, rule), None
    return gathered_attention(query, kv, rule, batch=batch, storage=storage), None


def gathered_attention(
    query: torch.Tensor, kv: LayerKV, rule: ScoreRule, *, batch: RaggedBatch, storage: KVStorage
) -> torch.Tensor:
    """Attention group by group, for any layer on any device; the batch's keys are in storage.

    Args:
        query: [1, heads, rows, key_dim].
        kv: the layer's keys and values.
        rule: how it scores keys.
        batch: whose rows they are.
        storage: what the layer is of.

    Returns:
        [1, rows, heads, value_dim].
    """
    layer = _Layer(kv, storage, rule.scaling, rule.softcap, rule.sinks)
    groups = batch.groups(rule.window)
    if groups[0].index is None:
        return _attend(query, layer, group=groups[0])[None]
    out = query.new_empty(query.shape[2], query.shape[1], kv.value_dim)
    for group in groups:
        rows = group.index
        assert rows is not None
        result = _attend(query.index_select(2, rows.sources), layer, group=group)
        if rows.real is not None:
            result = result.index_select(0, rows.real)
        out.index_copy_(0, rows.targets, result)
    return out[None]


def _attend(query: torch.Tensor, layer: _Layer, *, group: AttentionGroup) -> torch.Tensor:
    """One group: query [1, heads, size * num_rows, key_dim] -> [.., heads, value_dim]."""
    if layer.softcap is not None or layer.sinks is not None:
        product = _explicit
    elif group.num_rows > SHORT_ROWS:
        return _fused_long(query, layer, group=group)
    else:
        product = _fused
    size, rows, heads = group.size, group.num_rows, query.shape[1]
    key_heads = layer.kv.num_heads
    repeats = heads // key_heads
    # [size, key heads, rows * repeats, dim]: the query heads of a key head are rows of it, so that
    # its keys are read once for all of them. On the CPU each view counts.
    if rows == 1:
        folded = query.view(key_heads, repeats, size, -1).permute(2, 0, 1, 3)
        return product(folded, layer, group=group).reshape(size, heads, -1)
    folded = query.view(key_heads, repeats, size, rows, -1).permute(2, 0, 3, 1, 4)
    out = product(folded.reshape(size, key_heads, rows * repeats, -1), layer, group=group)
    out = out.view(size, key_heads, rows, repeats, -1).transpose(1, 2)
    return out.reshape(size * rows, heads, -1)


def _fused(query: torch.Tensor, layer: _Layer, *, group: AttentionGroup) -> torch.Tensor:
    """[size, key heads, rows * repeats, key_dim] -> the same with value_dim."""
    repeats = query.shape[2] // group.num_rows
    return _for_each_read(
        query,
        layer,
        group=group,
        attend=lambda part, keys, values, read: scaled_dot_product_attention(
            part, keys, values, attn_mask=read.bias(repeats), scale=layer.scaling
        ),
    )


def _fused_long(query: torch.Tensor, layer: _Layer, *, group: AttentionGroup) -> torch.Tensor:
    """For many rows, as `_attend`: the bias is large, so it is not repeated per head."""
    heads, rows = query.shape[1], group.num_rows
    out = _for_each_read(
        query.view(heads, group.size, rows, -1).transpose(0, 1),
        layer,
        group=group,
        attend=lambda part, keys, values, read: scaled_dot_product_attention(
            part,
            keys,
            values,
            attn_mask=None if read.is_causal_square else read.bias(1),
            is_causal=read.is_causal_square,
            scale=layer.scaling,
            enable_gqa=heads > layer.kv.num_heads,
        ),
    )
    return out.transpose(1, 2).reshape(group.size * rows, heads, -1)


def _explicit(query: torch.Tensor, layer: _Layer, *, group: AttentionGroup) -> torch.Tensor:
    """As `_fused`, written out: for soft-capped scores and attention sinks."""
    key_heads, rows = query.shape[1], group.num_rows
    repeats = query.shape[2] // rows

    def attend(
        part: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, read: KeyRead
    ) -> torch.Tensor:
        scores = part @ keys.mT
        if layer.softcap is not None:
            scores = torch.tanh(scores / layer.softcap) * layer.softcap
        if (bias := read.bias(1)) is not None:
            # One bias for the repeats of a row.
            scores = scores.view(read.size, key_heads, rows, repeats, -1) + bias[:, :, :, None]
            scores = scores.flatten(2, 3)
        if layer.sinks is not None:
            # [heads] -> [size, key heads, rows * repeats, 1]
            sinks = layer.sinks.to(scores.dtype).view(1, key_heads, 1, repeats)
            sinks = sinks.expand(read.size, -1, rows, -1).reshape(read.size, key_heads, -1, 1)
            scores = torch.cat([scores, sinks], dim=3)
        precise = torch.promote_types(scores.dtype, torch.float32)
        weights = scores.softmax(3, dtype=precise).to(values.dtype)
        return weights[..., : read.num_keys] @ values

    return _for_each_read(query * layer.scaling, layer, group=group, attend=attend)


def _for_each_read(
    query: torch.Tensor,
    layer: _Layer,
    *,
    group: AttentionGroup,
    attend: Callable[[torch.Tensor, torch.Tensor, torch.Tensor, KeyRead], torch.Tensor],
) -> torch.Tensor:
    """Calls `attend` with the sequences and keys of each read; query [size, ...] -> [size, ...]."""
    reads = group.reads
    if len(reads) == 1:
        return attend(query, *_read(layer, reads[0]), reads[0])
    parts: list[torch.Tensor] = []
    first = 0
    for read in reads:
        parts.append(attend(query[first : first + read.size], *_read(layer, read), read))
        first += read.size
    return torch.cat(parts)


def _read(layer: _Layer, read: KeyRead) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values [size, key heads, num_keys, dim] of one read."""
    kv, size, num_keys = layer.kv, read.size, read.num_keys
    width = kv.rows.shape[1]
    if isinstance(read.slots, int):
        source, first = kv.rows, read.slots * width
    else:
        source, first = layer.storage.gather(kv, read.slots), 0
    keys = source.as_strided(
        (size, kv.num_heads, num_keys, kv.key_dim),
        (num_keys * width, kv.key_dim, width, 1),
        first,
    )
    values = source.as_strided(
        (size, kv.num_heads, num_keys, kv.value_dim),
        (num_keys * width, kv.value_dim, width, 1),
        first + kv.num_heads * kv.key_dim,
    )
    return keys, values


AttentionInterface.register(ATTENTION_NAME, ragged_attention)
