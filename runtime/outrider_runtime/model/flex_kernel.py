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

from outrider_runtime.model import flex_tiles
from outrider_runtime.model.attention_weights import ScoreRule
from outrider_runtime.model.flex_tiles import Sight, Tiles, TileShape
from outrider_runtime.model.kv_storage import LayerKV
from outrider_runtime.model.paged_attention import KernelUnavailable, PagedKernel, PagedKeys

_NEEDED = {"score_mod", "block_mask", "scale", "kernel_options"}
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)

_LEAST_CAPABILITY = 7
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
        shape = TileShape.of(heads=query.shape[1], key_heads=kv.num_heads)
        layout = _layout(keys, kv, num_rows=query.shape[2], window=rule.window, shape=shape)
        _clear(kv, layout, block_size=keys.block_size)
        filled = layout.tiles.fill(query[0])
        _let_vary(filled, kv.rows, layout)
        attended = self._run(
            self._flex,
            filled,
            kv.rows,
            layout,
            dims=(kv.key_dim, kv.value_dim),
            block_size=keys.block_size,
            score=_Score(rule.scaling, rule.softcap),
            sinks=rule.sinks,
            options=_options(self._flex, kv, keys.block_size),
        )
        return layout.tiles.take(attended)[None]


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
        known[name] = _Layout(tiles, flex_tiles.look(tiles, keys, window=window), *ends)
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


def _let_vary(query: torch.Tensor, stored: torch.Tensor, layout: _Layout) -> None:
    """Tells the compiler which sizes change, so that it compiles once for all of them."""
    sequences, sight = layout.tiles.sequences, layout.sight
    for tensor in (query, stored, sequences, sight.num_blocks, sight.newest, sight.hidden):
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
    room = _SHARED_MEMORY - flex_tiles.SLOTS * query
    while keys > _FEWEST_KEYS and 2 * keys * key_and_value > room:
        keys //= 2
    stages = 2 if 2 * keys * key_and_value <= room else 1
    blocks = {"BLOCK_M": flex_tiles.SLOTS, "BLOCK_N": keys, "num_stages": stages, "num_warps": 4}
    return {**flex.one_kernel, **blocks}


def _attend(
    flex: Flex,
    query: torch.Tensor,
    stored: torch.Tensor,
    layout: _Layout,
    *,
    dims: tuple[int, int],
    block_size: int,
    score: _Score,
    sinks: torch.Tensor | None,
    options: dict[str, Any] | None,
) -> torch.Tensor:
    """A layer's attention, as far as it is compiled.

    Args:
        flex: torch's functions.
        query: [tiles, key heads, slots, key_dim].
        stored: [slots of the pool, width].
        layout: of the batch.
        dims: key_dim and value_dim.
        block_size: positions per block.
        score: how scores are made.
        sinks: [heads], or None.
        options: of the kernel.

    Returns:
        [tiles, key heads, slots, value_dim].
    """
    sequences, sight, first_positions = layout.tiles.sequences, layout.sight, layout.first_positions
    num_tiles, key_heads, slots, _ = query.shape
    check: Any = torch._check  # so that there is one size that varies, not six
    for tensor in (sequences, sight.num_blocks, sight.blocks, sight.newest, sight.hidden):
        check(tensor.shape[0] == num_tiles)

    def sees(
        tile: torch.Tensor, _: torch.Tensor, slot: torch.Tensor, key: torch.Tensor
    ) -> torch.Tensor:
        first = first_positions[sequences[tile], key // block_size]
        position = first + key % block_size
        return (position <= sight.newest[tile, slot]) & (position > sight.hidden[tile, slot])

    bound = 1.0 if score.softcap is None else score.softcap

    def capped(value: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        return torch.tanh(value / bound) * bound

    # A slot's row holds the keys of all heads, then the values. One batch of them for all tiles.
    keys, values = stored[:, : key_heads * dims[0]], stored[:, key_heads * dims[0] :]
    found = flex.attend(
        query,
        keys.view(1, -1, key_heads, dims[0]).transpose(1, 2),
        values.view(1, -1, key_heads, dims[1]).transpose(1, 2),
        score_mod=None if score.softcap is None else capped,
        block_mask=flex.block_mask(
            seq_lengths=(slots, stored.shape[0]),
            kv_num_blocks=sight.num_blocks,
            kv_indices=sight.blocks,
            full_kv_num_blocks=None,
            full_kv_indices=None,
            q_num_blocks=None,
            q_indices=None,
            full_q_num_blocks=None,
            full_q_indices=None,
            BLOCK_SIZE=(slots, block_size),
            mask_mod=sees,
        ),
        scale=score.scaling,
        kernel_options=options,
        **(flex.lse_request if sinks is not None else {}),
    )
    if sinks is None:
        attended: torch.Tensor = found
        return attended
    attended, told = found
    lse = told if isinstance(told, torch.Tensor) else told.lse
    # As if one more key took its share of the weights: exp(lse) / (exp(lse) + exp(sink)).
    share = torch.sigmoid(lse - sinks[layout.tiles.heads])
    return (attended * share[..., None]).to(query.dtype)
