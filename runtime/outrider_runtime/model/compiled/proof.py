"""Whether a compiled forward gives the same bits as the model run in Python.

Only then may the one take over from the other at any time, in the middle of a text too. Knows
nothing of compilers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from outrider_runtime.model.batch import RaggedBatch, SequenceRows
from outrider_runtime.model.causal_bias import CausalBias
from outrider_runtime.model.kv_pool import KVPool
from outrider_runtime.model.kv_storage import KVStorage

_ROUNDS = (
    # Of each round for each sequence: new tokens, and of how many logits are wanted.
    ((19, 0), (3, 3)),
    ((1, 1),),
    ((6, 6), (1, 1), (13, 1)),
    ((2, 2), (2, 2), (1, 1)),
)
"""One row and many, with and without logits, over the ends of blocks and with keys of before."""
_NUM_SEQUENCES = 3
_MOST_POSITIONS = 28

Run = Callable[[RaggedBatch, KVStorage], torch.Tensor]


class _Outcome(NamedTuple):
    logits: list[torch.Tensor]
    storage: KVStorage


def same_bits(
    runs: Sequence[Run], *, storage: KVStorage, block_size: int, token_ids: Sequence[int]
) -> bool:
    """Runs both on the same few rounds and compares logits, keys and values.

    Args:
        runs: two ways to run a forward.
        storage: whose layers are used; its content is not.
        block_size: positions per block.
        token_ids: at least one, to make the rounds of.
    """
    first, second = (_outcome(run, storage, block_size, token_ids) for run in runs)
    pairs = [*zip(first.logits, second.logits, strict=True)]
    pairs += zip(first.storage.layers, second.storage.layers, strict=True)
    return all(torch.equal(one, other) for one, other in pairs)


@torch.inference_mode()
def _outcome(run: Run, storage: KVStorage, block_size: int, token_ids: Sequence[int]) -> _Outcome:
    num_blocks = _NUM_SEQUENCES * -(-_MOST_POSITIONS // block_size)
    pool, own = KVPool(num_blocks, block_size), storage.resized(num_blocks)
    bias = CausalBias(device=torch.device("cpu"), dtype=torch.float32)
    handles = [pool.create() for _ in range(_NUM_SEQUENCES)]
    logits: list[torch.Tensor] = []
    fed = 0
    for sizes in _ROUNDS:
        items = []
        for handle, (count, wanted) in zip(handles, sizes, strict=False):
            pool.append(handle, count)
            tokens = [token_ids[(fed + i) % len(token_ids)] for i in range(count)]
            items.append(SequenceRows(handle, tokens, wanted))
            fed += count
        batch = RaggedBatch(
            items, pool=pool, bias=bias, device=torch.device("cpu"), first_positions={}
        )
        logits.append(run(batch, own))
    return _Outcome(logits, own)
