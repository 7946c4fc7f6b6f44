"""Loads a draft model and puts it behind the port. Needs torch."""

from __future__ import annotations

import torch
from outrider_runtime.errors import StartupError
from outrider_runtime.metrics import DraftMetrics
from outrider_runtime.model import loader
from outrider_runtime.model.runner import RaggedRunner
from outrider_runtime.tokenizer import fingerprint, load_tokenizer

from outrider_draft.drafter import Drafter
from outrider_draft.model_proposer import ModelProposer
from outrider_draft.proposer import Description
from outrider_draft.settings import ModelSettings


def build(settings: ModelSettings, metrics: DraftMetrics) -> Drafter:
    """Load a draft model.

    Raises:
        StartupError: It cannot be had, or has no room.
    """
    torch.set_num_threads(settings.threads)
    loaded = loader.load(settings.model, dtype=settings.dtype, device=settings.device)
    millions = loaded.model.num_parameters() / 1e6
    num_blocks = settings.kv_cache_tokens // settings.block_size
    if num_blocks < 1:
        raise StartupError(
            f"--kv-cache-tokens {settings.kv_cache_tokens} is less than one block of "
            f"{settings.block_size} tokens"
        )
    runner = RaggedRunner(
        loaded.model,
        num_blocks=num_blocks,
        block_size=settings.block_size,
        cpu_kernels=settings.cpu_kernels,
    )
    limits = [loaded.max_model_len, runner.max_model_len, num_blocks * settings.block_size]
    if settings.max_model_len is not None:
        limits.append(settings.max_model_len)
    tokenizer = load_tokenizer(loaded.folder)
    description = Description(
        kind="model",
        model_id=loaded.name,
        vocab_size=min(loaded.vocab_size, runner.vocab_size),
        tokenizer_fingerprint="" if tokenizer is None else fingerprint(tokenizer),
        max_length=min(limits),
    )
    return Drafter(
        ModelProposer(
            runner,
            description,
            metrics,
            rows_are_cheap=loaded.model.device.type != "cpu" or runner.kernels,
        ),
        f"model {loaded.name}, {millions:.1f}M parameters",
    )
