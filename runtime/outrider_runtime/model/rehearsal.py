"""A few ragged forwards that hold what a batch can hold, on a pool of their own.

For comparing one way to run a model with another. Knows nothing of what is compared.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from outrider_runtime.model.batch import RaggedBatch, SequenceRows
from outrider_runtime.model.causal_bias import CausalBias
from outrider_runtime.model.kv_pool import KVPool
from outrider_runtime.model.kv_storage import KVStorage

PROMPT = 19
"""Tokens that the first sequence begins with, unless told otherwise."""
_AFTER_PROMPT = 9  # tokens that it grows by
_LEAST_POSITIONS = 14  # that another one comes to
_ROUNDS = (
    # Of each round for each sequence: new tokens, and of how many logits are wanted.
    ((1, 1),),
    ((6, 6), (1, 1), (13, 1)),
    ((2, 2), (2, 2), (1, 1)),
)
"""One row and many, with and without logits, over the ends of blocks and with keys of before."""
_NUM_SEQUENCES = 3

Run = Callable[[RaggedBatch, KVStorage], torch.Tensor]


class Outcome(NamedTuple):
    """What came of it: the logits of each forward, and the keys and values.

    No logits: the model has too few positions for any of it.
    """

    logits: list[torch.Tensor]
    storage: KVStorage


@torch.inference_mode()
def rehearse(
    run: Run,
    *,
    storage: KVStorage,
    block_size: int,
    token_ids: Sequence[int],
    bias: CausalBias,
    max_model_len: int,
    prompt: int = PROMPT,
) -> Outcome:
    """Runs the forwards.

    Args:
        run: a way to run one.
        storage: whose layers are used; its content is not.
        block_size: positions per block.
        token_ids: at least one, to make the texts of.
        bias: tables of the device and the precision they run in.
        max_model_len: positions that the model has.
        prompt: tokens that the first sequence begins with, where there are positions for them.
    """
    if max_model_len < _LEAST_POSITIONS:
        return Outcome([], storage)
    prompt = min(prompt, max_model_len - _AFTER_PROMPT)
    rounds = (((prompt, 0), (3, 3)), *_ROUNDS)
    num_blocks = _NUM_SEQUENCES * -(-max(prompt + _AFTER_PROMPT, _LEAST_POSITIONS) // block_size)
    pool, own = KVPool(num_blocks, block_size), storage.resized(num_blocks)
    handles = [pool.create() for _ in range(_NUM_SEQUENCES)]
    logits: list[torch.Tensor] = []
    fed = 0
    for sizes in rounds:
        items = []
        for handle, (count, wanted) in zip(handles, sizes, strict=False):
            pool.append(handle, count)
            tokens = [token_ids[(fed + i) % len(token_ids)] for i in range(count)]
            items.append(SequenceRows(handle, tokens, wanted))
            fed += count
        batch = RaggedBatch(items, pool=pool, bias=bias, device=bias.device, first_positions={})
        logits.append(run(batch, own))
    return Outcome(logits, own)
