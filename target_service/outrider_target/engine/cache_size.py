"""How large the KV cache is, and so how long a sequence may be."""

from __future__ import annotations

from outrider_runtime.errors import StartupError
from outrider_runtime.model.loader import LoadedModel

from outrider_target.settings import TargetSettings

_TYPICAL_LENGTH = 2048
"""Tokens a sequence is given room for when nobody sizes the cache."""


def size_cache(loaded: LoadedModel, settings: TargetSettings) -> tuple[int, int]:
    """Blocks of the KV cache, and the longest sequence that may be served.

    Raises:
        StartupError: The sizes asked for make no sense.
    """
    model = settings.model
    if model.max_model_len is not None and model.max_model_len > loaded.max_model_len:
        raise StartupError(
            f"--max-model-len {model.max_model_len} is more than the model's "
            f"{loaded.max_model_len} positions"
        )
    max_model_len = model.max_model_len or loaded.max_model_len
    if model.kv_cache_bytes is not None:
        tokens = model.kv_cache_bytes // loaded.kv_bytes_per_token
    elif model.kv_cache_tokens is not None:
        tokens = model.kv_cache_tokens
    else:
        per_sequence = min(max_model_len, _TYPICAL_LENGTH)
        tokens = max(max_model_len, settings.batch.max_num_seqs * per_sequence)
    num_blocks = tokens // model.block_size
    if num_blocks < 2:
        raise StartupError(
            f"the KV cache has room for {tokens} tokens; it needs at least {2 * model.block_size}"
        )
    # One block stays free for copies of shared blocks, so that a lone sequence always fits.
    return num_blocks, min(max_model_len, (num_blocks - 1) * model.block_size)
