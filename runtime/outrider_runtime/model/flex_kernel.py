"""Paged attention through torch's FlexAttention: wherever Triton runs, in float32 as well.

A block mask names the blocks of keys that a tile of queries reads, in order. Of a tile whose rows
are all of one sequence, those are the sequence's blocks in the pool: its block table *is* the mask.
Within blocks, a function from slots to positions hides what a row may not see. Scores can be
changed on the way (a soft cap), and the kernel tells the sum of a row's weights (for sinks).

A row's bits do not depend on its company. Tiles have one shape, whatever is in them; one kernel
with one choice of inner blocks runs for all batches; it goes through a sequence's blocks one after
the other, and a block of which a row sees nothing adds nothing to it, to the bit. So blocks that
are seen whole get no list of their own, though they would need no mask: which ones those are
depends on a tile's other rows, and with two lists a row's sums would change their order.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from torch.nn.functional import pad

from outrider_runtime.model import flex_tiles
from outrider_runtime.model.attention_weights import ScoreRule
from outrider_runtime.model.flex_tiles import Sight, Tiles, TileShape
from outrider_runtime.model.kv_storage import LayerKV
from outrider_runtime.model.paged_attention import KernelUnavailable, PagedKernel, PagedKeys

_NEEDED = {"score_mod", "block_mask", "scale", "kernel_options"}
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)

_LEAST_CAPABILITY = 7

_INNER_ROWS = 32
_FEWEST_KEYS = 16
"""Of an inner block, as of any product that Triton makes of tiles."""
_MOST_KEYS = 64
_SHARED_MEMORY = 64 * 1024
"""Bytes for queries, keys and values of a step, that every GPU with Triton has."""


class Flex(NamedTuple):
    """What is used of `torch.nn.attention.flex_attention`."""

    attend: Callable[..., Any]
    block_mask: Callable[..., Any]
    lse_request: dict[str, Any]
    """Arguments that make it return the logarithms of the sums of weights as well."""
    one_kernel: dict[str, Any]
    """Options that make it use the same kernel for few queries as for many."""


class _Layout(NamedTuple):
    """A batch as the layers of one kind need it."""

    tiles: Tiles
    sight: Sight
    first_positions: torch.Tensor
    """See `flex_tiles.first_positions`."""
    last_blocks: torch.Tensor
    """int64 [sequences], the last block of each."""
    unwritten: torch.Tensor
    """bool [sequences, block size, 1], its slots behind the end of the sequence."""


class _Score(NamedTuple):
    """How a layer scores keys: what is compiled in."""

    scaling: float
    softcap: float | None


class FlexAttention:
    """See `PagedAttention`.

    Args:
        flex: torch's functions.
        compiled: whether to compile what is done in a layer, once for all shapes. Without, torch
            multiplies all queries with the whole pool, hidden or not.
    """

    name = "flex"

    def __init__(self, flex: Flex, *, compiled: bool) -> None:
        self._flex = flex
        self._run = torch.compile(_attend, fullgraph=True) if compiled else _attend

    def fits(self, kv: LayerKV, rule: ScoreRule) -> bool:
        """See `PagedAttention`."""
        return True

    def attend(
        self, query: torch.Tensor, kv: LayerKV, keys: PagedKeys, rule: ScoreRule
    ) -> torch.Tensor:
        """See `PagedAttention`.

        Raises:
            ValueError: the GPU's inner blocks do not fit the blocks of the pool.
        """
        shape = TileShape.of(query.shape[1] // kv.num_heads)
        layout = _layout(keys, kv, num_rows=query.shape[2], window=rule.window, shape=shape)
        _clear(kv, layout, block_size=keys.block_size)
        # Contiguous: models bring queries in more than one layout, each of which would be compiled.
        rows = query[0].transpose(0, 1).contiguous()
        _let_vary(rows, kv.rows, layout)
        out: torch.Tensor = self._run(
            self._flex,
            rows,
            kv.rows,
            layout,
            shape=shape,
            dims=(kv.num_heads, kv.key_dim, kv.value_dim),
            block_size=keys.block_size,
            score=_Score(rule.scaling, rule.softcap),
            sinks=rule.sinks,
            options=_options(self._flex, kv, keys.block_size),
        )
        return out[None]


def load(*, device: torch.device, dtype: torch.dtype) -> PagedKernel:
    """Returns the kernel for a model on this GPU, of this precision.

    Raises:
        KernelUnavailable: there is none.
    """
    if dtype not in _DTYPES:
        raise KernelUnavailable("it is for float32, bfloat16 and float16 (--dtype)")
    major, minor = torch.cuda.get_device_capability(device)
    if major < _LEAST_CAPABILITY:
        raise KernelUnavailable(f"Triton does not know compute {major}.{minor}")
    if importlib.util.find_spec("triton") is None:
        raise KernelUnavailable("there is no Triton to compile it with")
    return PagedKernel(FlexAttention(functions(), compiled=True))


def functions() -> Flex:
    """Returns what this torch has.

    Raises:
        KernelUnavailable: that is not enough.
    """
    try:
        module: Any = importlib.import_module("torch.nn.attention.flex_attention")
        attend, block_mask = module.flex_attention, module.BlockMask
    except (ImportError, AttributeError):
        raise KernelUnavailable("this torch has no FlexAttention") from None
    known = set(inspect.signature(attend).parameters)
    if not known >= _NEEDED:
        raise KernelUnavailable("this torch's FlexAttention takes no block masks or options")
    newer = "return_aux" in known
    options = getattr(getattr(module, "FlexKernelOptions", None), "__annotations__", {})
    return Flex(
        attend,
        block_mask,
        {"return_aux": module.AuxRequest(lse=True)} if newer else {"return_lse": True},
        # Torch's kernel for few queries splits keys, into parts that follow from the whole batch.
        {"BACKEND": "TRITON"} if "BACKEND" in options else {"FORCE_USE_FLEX_ATTENTION": True},
    )


def _layout(
    keys: PagedKeys, kv: LayerKV, *, num_rows: int, window: int | None, shape: TileShape
) -> _Layout:
    """Returns the batch as this layer needs it; worked out once for all layers alike."""
    # Anew within a recording of the device's work, or it would not be part of what is replayed.
    recorded = keys.tables.is_cuda and torch.cuda.is_current_stream_capturing()
    known, name = keys.worked_out, (recorded, shape, window)
    if name not in known:
        if (recorded, shape) not in known:
            known[recorded, shape] = flex_tiles.lay_out(keys, num_rows=num_rows, shape=shape)
        if recorded not in known:
            num_blocks = kv.rows.shape[0] // keys.block_size
            known[recorded] = (
                flex_tiles.first_positions(keys, num_blocks=num_blocks),
                *_ends(keys),
            )
        tiles: Any = known[recorded, shape]
        ends: Any = known[recorded]
        known[name] = _Layout(
            tiles, flex_tiles.look(tiles, keys, window=window, shape=shape), *ends
        )
    return cast("_Layout", known[name])


def _ends(keys: PagedKeys) -> tuple[torch.Tensor, torch.Tensor]:
    """The last block of each sequence, and which of its slots are not the sequence's."""
    # For one without positions the first sequence's, so that what is written twice is the same.
    numbers = torch.arange(keys.lengths.shape[0], device=keys.lengths.device)
    numbers = torch.where(keys.lengths > 0, numbers, 0)
    lengths = keys.lengths[numbers]
    last = (lengths - 1) // keys.block_size
    blocks = keys.tables[numbers].gather(1, last[:, None].long())[:, 0]
    slots = torch.arange(keys.block_size, device=blocks.device) + (last * keys.block_size)[:, None]
    return blocks.long(), (slots >= lengths[:, None])[..., None]


def _clear(kv: LayerKV, layout: _Layout, *, block_size: int) -> None:
    """Zeros what others left behind the end of each sequence, in its last block.

    The kernel weighs it with 0 and adds it up, and 0 times NaN is NaN: what one caller's text left
    there would be in another's. Nobody else has that block, since new positions were written to it.
    """
    blocks = kv.rows.view(-1, block_size, kv.rows.shape[1])
    last = blocks.index_select(0, layout.last_blocks)
    blocks.index_copy_(0, layout.last_blocks, last.masked_fill_(layout.unwritten, 0))


def _let_vary(rows: torch.Tensor, stored: torch.Tensor, layout: _Layout) -> None:
    """Tells the compiler which sizes change, so that it compiles once for all of them."""
    tiles, sight = layout.tiles, layout.sight
    for tensor in (rows, stored, tiles.sequences, tiles.sources, tiles.places, sight.num_blocks):
        torch._dynamo.maybe_mark_dynamic(tensor, 0)
    for tensor in (sight.newest, sight.hidden):
        torch._dynamo.maybe_mark_dynamic(tensor, 0)
    torch._dynamo.maybe_mark_dynamic(sight.blocks, [0, 3])
    torch._dynamo.maybe_mark_dynamic(layout.first_positions, [0, 1])


def _options(flex: Flex, kv: LayerKV, block_size: int) -> dict[str, Any] | None:
    """What the kernel must not choose by itself, since it would choose by shapes.

    Raises:
        ValueError: its inner blocks do not fit the blocks of the pool.
    """
    if not kv.rows.is_cuda:
        return None
    if block_size % _FEWEST_KEYS:
        raise ValueError(f"FlexAttention needs a --block-size that is a multiple of {_FEWEST_KEYS}")
    query, key_and_value = (
        width * kv.rows.element_size() for width in (kv.key_dim, kv.key_dim + kv.value_dim)
    )
    keys = min(_MOST_KEYS, block_size & -block_size)  # a power of two that divides it
    room = _SHARED_MEMORY - _INNER_ROWS * query
    while keys > _FEWEST_KEYS and 2 * keys * key_and_value > room:
        keys //= 2
    stages = 2 if 2 * keys * key_and_value <= room else 1
    blocks = {"BLOCK_M": _INNER_ROWS, "BLOCK_N": keys, "num_stages": stages, "num_warps": 4}
    return {**flex.one_kernel, **blocks}


def _attend(
    flex: Flex,
    rows: torch.Tensor,
    stored: torch.Tensor,
    layout: _Layout,
    *,
    shape: TileShape,
    dims: tuple[int, int, int],
    block_size: int,
    score: _Score,
    sinks: torch.Tensor | None,
    options: dict[str, Any] | None,
) -> torch.Tensor:
    """A layer's attention, as far as it is compiled.

    Args:
        flex: torch's functions.
        rows: [rows, heads, key_dim].
        stored: [slots of the pool, width].
        layout: of the batch.
        shape: of its tiles.
        dims: key heads, key_dim and value_dim.
        block_size: positions per block.
        score: how scores are made.
        sinks: [heads], or None.
        options: of the kernel.

    Returns:
        [rows, heads, value_dim].
    """
    (tiles, sight), first_positions = layout[:2], layout.first_positions
    key_heads, key_dim, value_dim = dims

    def sees(
        tile: torch.Tensor, _: torch.Tensor, slot: torch.Tensor, key: torch.Tensor
    ) -> torch.Tensor:
        first = first_positions[tiles.sequences[tile], key // block_size]
        position = first + key % block_size
        return (position <= sight.newest[tile, slot]) & (position > sight.hidden[tile, slot])

    softcap = score.softcap

    def capped(value: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        return torch.tanh(value / softcap) * softcap

    # A slot's row holds the keys of all heads, then the values. One batch of them for all tiles.
    keys, values = stored.split([key_heads * key_dim, key_heads * value_dim], 1)
    found = flex.attend(
        _into_tiles(rows, tiles, shape, key_heads),
        keys.view(1, -1, key_heads, key_dim).transpose(1, 2),
        values.view(1, -1, key_heads, value_dim).transpose(1, 2),
        score_mod=None if softcap is None else capped,
        block_mask=flex.block_mask(
            seq_lengths=(shape.slots, stored.shape[0]),
            kv_num_blocks=sight.num_blocks,
            kv_indices=sight.blocks,
            full_kv_num_blocks=None,
            full_kv_indices=None,
            q_num_blocks=None,
            q_indices=None,
            full_q_num_blocks=None,
            full_q_indices=None,
            BLOCK_SIZE=(shape.slots, block_size),
            mask_mod=sees,
        ),
        scale=score.scaling,
        kernel_options=options,
        **(flex.lse_request if sinks is not None else {}),
    )
    if sinks is not None:
        found, told = found
        lse = told if isinstance(told, torch.Tensor) else told.lse
        # As if one more key took its share of the weights: exp(lse) / (exp(lse) + exp(sink)).
        share = torch.sigmoid(lse - _of_slots(sinks, shape, key_heads))
        found = (found * share[..., None]).to(rows.dtype)
    return _out_of_tiles(found, tiles, shape)


def _of_slots(numbers: torch.Tensor, shape: TileShape, key_heads: int) -> torch.Tensor:
    """[heads] -> [key heads, slots]."""
    out = numbers.view(key_heads, 1, shape.repeats).expand(-1, shape.rows, -1)
    out = out.reshape(key_heads, shape.rows * shape.repeats)
    return pad(out, (0, shape.slots - out.shape[1]))


def _into_tiles(rows: torch.Tensor, tiles: Tiles, shape: TileShape, key_heads: int) -> torch.Tensor:
    """[rows, heads, dim] -> [tiles, key heads, slots, dim]."""
    used = shape.rows * shape.repeats
    out = rows.index_select(0, tiles.sources)
    out = out.view(-1, shape.rows, key_heads, shape.repeats, rows.shape[2]).transpose(1, 2)
    out = out.reshape(-1, key_heads, used, rows.shape[2])
    return pad(out, (0, 0, 0, shape.slots - used))


def _out_of_tiles(out: torch.Tensor, tiles: Tiles, shape: TileShape) -> torch.Tensor:
    """[tiles, key heads, slots, dim] -> [rows, heads, dim]."""
    key_heads, dim = out.shape[1], out.shape[3]
    out = out[:, :, : shape.rows * shape.repeats]
    out = out.reshape(-1, key_heads, shape.rows, shape.repeats, dim).transpose(1, 2)
    return out.reshape(-1, key_heads * shape.repeats, dim).index_select(0, tiles.places)
