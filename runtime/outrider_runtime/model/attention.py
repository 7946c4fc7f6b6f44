"""The attention function that transformers calls in place of its own.

Transformers (5.17 and later) looks attention functions up by name in `AttentionInterface`. Under a
name that has no entry in its mask interface it builds no mask at all and hands over queries, keys
and values of the new rows only. So this function writes the keys and values to the pool's storage
and lets every row attend to its own sequence's slots.

For small models a forward on the CPU is mostly dispatch, so there is no loop over sequences: the
sequences of a group run as one padded product (see `attention_groups`), and everything that does
not depend on the layer was computed beforehand. Knows nothing of scheduling or of whole models.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple, cast

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from outrider_runtime.model.attention_groups import SHORT_ROWS, AttentionGroup
from outrider_runtime.model.batch import RaggedBatch
from outrider_runtime.model.kv_storage import KVStorage, LayerKV

ATTENTION_NAME = "outrider_ragged"


class ForwardContext(NamedTuple):
    """What the attention function needs beside its arguments."""

    batch: RaggedBatch
    storage: KVStorage


# Not a keyword argument of the model: some models (StableLM, Nemotron) drop what they don't know.
_CONTEXT: ContextVar[ForwardContext | None] = ContextVar("outrider_forward", default=None)


@contextmanager
def forward_context(batch: RaggedBatch, storage: KVStorage) -> Iterator[None]:
    """Makes `ragged_attention` work on this batch, in this thread, within the block."""
    token = _CONTEXT.set(ForwardContext(batch, storage))
    try:
        yield
    finally:
        _CONTEXT.reset(token)


class _Terms(NamedTuple):
    """What shapes the scores of a layer."""

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
    position_bias: torch.Tensor | None = None,
    **_: object,
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
        position_bias: must be None.

    Returns:
        [1, rows, heads, value_dim], and None in place of the attention weights.

    Raises:
        RuntimeError: called outside a forward of the runner, or with a mask or bias of the model's.
    """
    context = _CONTEXT.get()
    if context is None:
        raise RuntimeError("a model that the engine has taken over runs only through its runner")
    if attention_mask is not None or position_bias is not None:
        raise RuntimeError("the model brings an attention mask or bias of its own")
    if query.shape[0] != 1:
        raise RuntimeError("the model turns the flat batch into several rows")
    batch, storage = context
    layer = cast("int", module.layer_idx)
    kv = storage.write(layer, key, values=value, slots=batch.write_slots)
    scaling = query.shape[3] ** -0.5 if scaling is None else scaling
    terms = _Terms(scaling, softcap, s_aux)
    groups = batch.groups(sliding_window)
    heads, rows = query.shape[1], query.shape[2]
    out: torch.Tensor | None = None
    for group in groups:
        index = group.index
        if index is None:
            return _attend(query, kv, group=group, terms=terms).view(1, rows, heads, -1), None
        if out is None:
            out = query.new_empty(rows, heads, kv.value_dim)
        result = _attend(query.index_select(2, index.sources), kv, group=group, terms=terms)
        if index.real is not None:
            result = result.index_select(0, index.real)
        out.index_copy_(0, index.targets, result)
    assert out is not None
    return out[None], None


def _attend(
    query: torch.Tensor, kv: LayerKV, *, group: AttentionGroup, terms: _Terms
) -> torch.Tensor:
    """One group: query [1, heads, size * num_rows, key_dim] -> [.., heads, value_dim]."""
    size, rows, heads = group.size, group.num_rows, query.shape[1]
    repeats = heads // kv.num_heads
    keys, values = _read(kv, group)
    if terms.softcap is not None or terms.sinks is not None:
        # [1, heads, size * rows, dim] -> [size, key heads, repeats, rows, dim]
        folded = query.view(kv.num_heads, repeats, size, rows, -1).permute(2, 0, 1, 3, 4)
        out = _explicit(
            folded, keys, values=values, bias=group.bias(1, dtype=query.dtype), terms=terms
        )
        return out.permute(0, 3, 1, 2, 4).reshape(size * rows, heads, -1)
    if rows > SHORT_ROWS:
        # Many rows: the mask is large, so it is not repeated per head.
        bias = None if group.is_causal_square else group.bias(1, dtype=query.dtype)
        out = scaled_dot_product_attention(
            query.view(heads, size, rows, -1).transpose(0, 1),
            keys,
            values,
            attn_mask=bias,
            is_causal=group.is_causal_square,
            scale=terms.scaling,
            enable_gqa=repeats > 1,
        )
        return out.transpose(1, 2).reshape(size * rows, heads, -1)
    # Few rows: the query heads of a key head become further rows of it. Keys are read once, and
    # the fast kernel applies (on the CPU it knows no grouped heads).
    folded = query.view(kv.num_heads, repeats, size, rows, -1).permute(2, 0, 1, 3, 4)
    out = scaled_dot_product_attention(
        folded.reshape(size, kv.num_heads, repeats * rows, -1),
        keys,
        values,
        attn_mask=group.bias(repeats, dtype=query.dtype),
        scale=terms.scaling,
    )
    out = out.view(size, kv.num_heads, repeats, rows, -1).permute(0, 3, 1, 2, 4)
    return out.reshape(size * rows, heads, -1)


def _read(kv: LayerKV, group: AttentionGroup) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values of a group, [size, key heads, num_keys, dim] each."""
    if isinstance(group.slots, int):
        source, offset = kv.rows, group.slots * kv.rows.shape[1]
    else:
        source, offset = kv.rows.index_select(0, group.slots), 0
    size, num_keys, width = group.size, group.num_keys, kv.rows.shape[1]
    keys = source.as_strided(
        (size, kv.num_heads, num_keys, kv.key_dim),
        (num_keys * width, kv.key_dim, width, 1),
        offset,
    )
    values = source.as_strided(
        (size, kv.num_heads, num_keys, kv.value_dim),
        (num_keys * width, kv.value_dim, width, 1),
        offset + kv.num_heads * kv.key_dim,
    )
    return keys, values


def _explicit(
    query: torch.Tensor,
    keys: torch.Tensor,
    *,
    values: torch.Tensor,
    bias: torch.Tensor | None,
    terms: _Terms,
) -> torch.Tensor:
    """Softmax attention written out: for soft-capped scores and attention sinks.

    Args:
        query: [size, key heads, repeats, rows, key_dim].
        keys: [size, key heads, num_keys, key_dim].
        values: [size, key heads, num_keys, value_dim].
        bias: [size, 1, rows, num_keys], or None.
        terms: what shapes the scores.

    Returns:
        [size, key heads, repeats, rows, value_dim].
    """
    size, key_heads, repeats, rows, _ = query.shape
    scores = query @ keys.transpose(2, 3)[:, :, None] * terms.scaling
    if terms.softcap is not None:
        scores = torch.tanh(scores / terms.softcap) * terms.softcap
    if bias is not None:
        scores = scores + bias[:, :, None]
    if terms.sinks is not None:
        sinks = terms.sinks.to(scores.dtype).view(1, key_heads, repeats, 1, 1)
        scores = torch.cat([scores, sinks.expand(size, -1, -1, rows, 1)], dim=-1)
    precise = torch.promote_types(scores.dtype, torch.float32)
    weights = scores.softmax(-1, dtype=precise).to(values.dtype)
    return weights[..., : keys.shape[2]] @ values[:, :, None]


AttentionInterface.register(ATTENTION_NAME, ragged_attention)
