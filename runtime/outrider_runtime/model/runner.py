"""Runs a decoder on ragged batches: the port every engine codes against, and the paged engine.

Knows nothing of requests, sampling or drafts: token ids in, logits out, positions in the pool.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from transformers import PreTrainedModel

from outrider_runtime.errors import StartupError
from outrider_runtime.model.attention import ATTENTION_NAME, forward_context
from outrider_runtime.model.batch import RaggedBatch, SequenceRows
from outrider_runtime.model.causal_bias import CausalBias
from outrider_runtime.model.device import is_out_of_memory
from outrider_runtime.model.kv_pool import KVPool
from outrider_runtime.model.kv_storage import KVStorage
from outrider_runtime.model.model_facts import max_model_len, num_input_ids, num_output_ids
from outrider_runtime.model.support import UnsupportedModel

__all__ = ["RaggedRunner", "Runner", "SequenceRows"]


class Runner(Protocol):
    """A model together with the positions it has already seen."""

    pool: KVPool
    vocab_size: int
    """Columns of the logits."""
    max_model_len: int
    """Positions the model was made for."""
    dtype: torch.dtype

    def forward(self, batch: Sequence[SequenceRows]) -> torch.Tensor:
        """Appends the new tokens to their sequences and computes logits.

        Args:
            batch: the new tokens of different sequences, at least one token each.

        Returns:
            float32 (float64 for a float64 model) [sum of num_logits, vocab_size], in batch order.

        Raises:
            OutOfBlocks: the pool cannot hold the new tokens; nothing was changed.
            KeyError: no such sequence; nothing was changed.
            ValueError: bad rows; nothing was changed.
        """
        ...


class RaggedRunner:
    """All rows of all sequences in one forward, on the paged pool.

    Takes the model over: from here on it runs only through the runner. One thread at a time.

    Args:
        model: a supported model (`support.check_supported`), in evaluation mode.
        num_blocks: blocks of the pool.
        block_size: positions per block.

    Raises:
        StartupError: the KV cache does not fit into memory.
        UnsupportedModel: the model kept its own attention.
    """

    def __init__(self, model: PreTrainedModel, *, num_blocks: int, block_size: int) -> None:
        model.set_attn_implementation(ATTENTION_NAME)
        self._model = model.eval()
        self._num_input_ids = num_input_ids(model)
        self._windows: frozenset[int | None] = frozenset()
        self.vocab_size = num_output_ids(model)
        self.max_model_len = max_model_len(model.config)
        self.dtype: torch.dtype = model.dtype
        self.device: torch.device = model.device
        self._bias = CausalBias(device=self.device, dtype=self.dtype)
        self._storage, self.pool = KVStorage(1, block_size), KVPool(1, block_size)
        self._learn_shapes()
        if not self._windows:
            raise UnsupportedModel(
                model.config, "it does not call the attention function it was given"
            )
        self._storage, self.pool = self._allocate(num_blocks), KVPool(num_blocks, block_size)

    @property
    def bytes_per_token(self) -> int:
        """Bytes of keys and values that one position takes, as measured."""
        return self._storage.bytes_per_token

    @property
    def windows(self) -> frozenset[int | None]:
        """Sliding windows that attention layers of the last forward asked for (None: none)."""
        return self._windows

    @torch.inference_mode()
    def forward(
        self,
        batch: Sequence[SequenceRows],
        *,
        first_positions: Mapping[int, int] | None = None,
    ) -> torch.Tensor:
        """See `Runner.forward`.

        Args:
            batch: the new tokens of different sequences, at least one token each.
            first_positions: for sequences that do not begin at position 0, by handle, where they
                do; the same at every call.
        """
        first_positions = first_positions or {}
        self._check(batch, first_positions)
        copies = self.pool.append_all((item.handle, len(item.token_ids)) for item in batch)
        try:
            self._storage.copy_blocks(copies)
            return self._run(
                RaggedBatch(
                    batch,
                    pool=self.pool,
                    bias=self._bias,
                    device=self.device,
                    first_positions=first_positions,
                )
            )
        except BaseException:
            # Positions whose keys were perhaps never written must not look as if they were.
            for item in batch:
                self.pool.truncate(item.handle, self.pool.length(item.handle) - len(item.token_ids))
            raise

    def _learn_shapes(self) -> None:
        """Runs one token, so that the storage has seen every layer."""
        self.forward([SequenceRows(self.pool.create(), [0], 0)])

    @torch.inference_mode()
    def _allocate(self, num_blocks: int) -> KVStorage:
        try:
            return self._storage.resized(num_blocks)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            tokens = num_blocks * self.pool.block_size
            gigabytes = tokens * self.bytes_per_token / 2**30
            raise StartupError(
                f"a KV cache of {tokens} tokens ({gigabytes:.1f} GiB) does not fit into the memory "
                f"of {self.device}: make it smaller"
            ) from error

    def _run(self, batch: RaggedBatch) -> torch.Tensor:
        # 0 keeps all rows.
        keep = 0 if batch.logits_rows is None else batch.logits_rows
        with forward_context(batch, self._storage):
            output = self._model(
                input_ids=batch.input_ids,
                position_ids=batch.position_ids,
                use_cache=False,
                logits_to_keep=keep,
            )
        self._windows = batch.windows
        logits: torch.Tensor = output.logits[0]
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def _check(self, batch: Sequence[SequenceRows], first_positions: Mapping[int, int]) -> None:
        if not batch:
            raise ValueError("a batch holds at least one sequence")
        for handle, token_ids, num_logits in batch:
            if not token_ids:
                raise ValueError(f"sequence {handle}: no new tokens")
            if not 0 <= num_logits <= len(token_ids):
                raise ValueError(
                    f"sequence {handle}: {num_logits} logits wanted of {len(token_ids)} rows"
                )
            if min(token_ids) < 0 or max(token_ids) >= self._num_input_ids:
                raise ValueError(f"sequence {handle}: token id out of range")
            length = first_positions.get(handle, 0) + self.pool.length(handle) + len(token_ids)
            if length > self.max_model_len:
                raise ValueError(
                    f"sequence {handle}: longer than the model's {self.max_model_len} positions"
                )
