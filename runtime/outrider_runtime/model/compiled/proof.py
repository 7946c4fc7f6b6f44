"""Whether a compiled forward gives the same bits as the model run in Python.

Only then may the one take over from the other at any time, in the middle of a text too. Knows
nothing of compilers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from outrider_runtime.model.causal_bias import CausalBias
from outrider_runtime.model.kv_storage import KVStorage
from outrider_runtime.model.rehearsal import Run, rehearse


def same_bits(
    runs: Sequence[Run],
    *,
    storage: KVStorage,
    block_size: int,
    token_ids: Sequence[int],
    max_model_len: int,
) -> bool:
    """Runs both on the same few rounds and compares logits, keys and values.

    False as well for a model of too few positions to be run so.

    Args:
        runs: two ways to run a forward, in float32 on the CPU.
        storage: whose layers are used; its content is not.
        block_size: positions per block.
        token_ids: at least one, to make the rounds of.
        max_model_len: positions that the model has.
    """
    bias = CausalBias(device=torch.device("cpu"), dtype=torch.float32)
    first, second = (
        rehearse(
            run,
            storage=storage,
            block_size=block_size,
            token_ids=token_ids,
            bias=bias,
            max_model_len=max_model_len,
        )
        for run in runs
    )
    pairs = [*zip(first.logits, second.logits, strict=True)]
    pairs += zip(first.storage.layers, second.storage.layers, strict=True)
    return bool(first.logits) and all(torch.equal(one, other) for one, other in pairs)
