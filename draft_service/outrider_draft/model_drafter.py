"""Loads a draft model and puts it behind the port. Needs torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import structlog
import torch
from outrider_runtime.errors import StartupError
from outrider_runtime.model import loader, paged_kernel
from outrider_runtime.model.graphed import graph
from outrider_runtime.model.ragged_runner import RaggedRunner
from outrider_runtime.tokenizer import fingerprint, load_tokenizer

from outrider_draft.drafter import Drafter
from outrider_draft.metrics import DraftMetrics
from outrider_draft.model_proposer import ModelProposer
from outrider_draft.proposer import Description
from outrider_draft.settings import ModelSettings
from outrider_draft.translation.lexicon import Lexicon
from outrider_draft.translation.proposer import TranslatingProposer
from outrider_draft.translation.routing import RoutingProposer
from outrider_draft.translation.shared_items import SharedItems

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

log = structlog.get_logger(__name__)


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
        quantization=settings.quantization,
        compiled=settings.compile,
        paged_kernel=paged_kernel.find(device=loaded.model.device, dtype=loaded.model.dtype),
        new_graph=graph.find(loaded.model.device),
    )
    limits = [loaded.max_model_len, runner.max_model_len, num_blocks * settings.block_size]
    if settings.max_model_len is not None:
        limits.append(settings.max_model_len)
    tokenizer = load_tokenizer(loaded.folder)
    vocab_size = min(loaded.vocab_size, runner.vocab_size)
    items = shared_items(
        settings.target_tokenizers, tokenizer, model=loaded.name, vocab_size=vocab_size
    )
    description = Description(
        kind="model",
        model_id=loaded.name,
        vocab_size=vocab_size,
        tokenizer_fingerprint="" if tokenizer is None else fingerprint(tokenizer),
        max_length=min(limits),
        translates=frozenset(items),
    )
    cheap = loaded.model.device.type != "cpu" or runner.kernels
    title = f"model {loaded.name}, {millions:.1f}M {runner.weight_format} parameters"
    own = ModelProposer(runner, description, metrics, rows_are_cheap=cheap)
    if not items:
        return Drafter(own, title)
    translating = TranslatingProposer(
        runner, description, metrics, items=items, rows_are_cheap=cheap
    )
    return Drafter(
        RoutingProposer(own, translating), f"{title}, translating to {len(items)} more tokenizers"
    )


def shared_items(
    folders: Sequence[str],
    own: PreTrainedTokenizerFast | None,
    *,
    model: str,
    vocab_size: int,
) -> dict[str, SharedItems]:
    """What the draft model has in common with the targets of other tokenizers.

    Args:
        folders: Folders or hub ids of the targets' tokenizers. The draft model's own may be among
            them: it needs no translation.
        own: The draft model's tokenizer.
        model: Its name, for errors.
        vocab_size: Token ids the model knows.

    Raises:
        StartupError: A tokenizer cannot be had, or the draft model has none.
    """
    if folders and own is None:
        raise StartupError(f"--target-tokenizer: the draft model {model} has no tokenizer itself")
    items: dict[str, SharedItems] = {}
    for folder in folders:
        tokenizer = load_tokenizer(folder)
        if tokenizer is None:
            raise StartupError(f"--target-tokenizer: {folder} holds no tokenizer")
        assert own is not None
        if fingerprint(tokenizer) == fingerprint(own):
            continue
        found = SharedItems(Lexicon(tokenizer), Lexicon(own), vocab_size=vocab_size)
        items[found.target.fingerprint] = found
        log.info(
            "tokenizer_added",
            tokenizer=folder,
            fingerprint=found.target.fingerprint,
            shared=len(found.to_draft),
            own=len(found.begins_with) - len(found.to_draft) + len(found.without_beginning),
        )
    return items
