"""Runs a decoder on ragged batches, all rows of all sequences in one forward, on the paged pool.

Knows nothing of requests, sampling or drafts: token ids in, logits out, positions in the pool.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate

import structlog
import torch
from transformers import PreTrainedModel

from outrider_runtime.errors import StartupError
from outrider_runtime.model import paged_proof
from outrider_runtime.model.attention import ATTENTION_NAME, Watcher, forward_context
from outrider_runtime.model.attention_weights import AskingRows, AttentionWeights
from outrider_runtime.model.batch import Places, RaggedBatch, SequenceRows
from outrider_runtime.model.causal_bias import CausalBias
from outrider_runtime.model.compiled.choice import StepChoice
from outrider_runtime.model.compiled.mode import Compile
from outrider_runtime.model.compiled.proof import same_bits
from outrider_runtime.model.compiled.recipe import Recipe
from outrider_runtime.model.compiled.step import CompiledStep
from outrider_runtime.model.decoder_layers import DecoderLayers
from outrider_runtime.model.device import is_out_of_memory
from outrider_runtime.model.forward_step import ForwardStep
from outrider_runtime.model.kernels import choice
from outrider_runtime.model.kernels.mode import CpuKernels, Quantization
from outrider_runtime.model.kv_pool import KVPool
from outrider_runtime.model.kv_storage import KVStorage
from outrider_runtime.model.layer_reading import LayerReading
from outrider_runtime.model.model_facts import (
    max_model_len,
    num_attention_heads,
    num_input_ids,
    num_output_ids,
    ties_embeddings,
)
from outrider_runtime.model.paged_attention import PagedAttention, PagedKernel
from outrider_runtime.model.rank_group import RankGroup
from outrider_runtime.model.runner import LayerShapes
from outrider_runtime.model.support import UnsupportedModel

_log = structlog.get_logger(__name__)


class RaggedRunner:
    """All rows of all sequences in one forward, on the paged pool.

    Takes the model over: from here on it runs only through the runner. One thread at a time.

    Args:
        model: a supported model (`support.check_supported`), in evaluation mode.
        num_blocks: blocks of the pool.
        block_size: positions per block.
        cpu_kernels: whether to run on kernels of our own.
        quantization: how they hold the weights of its linear layers.
        compiled: whether to have the model compiled, where it runs on them.
        paged_kernel: attends where keys lie, in layers that it fits, if it gives the same.
        group: the processes that share the model; all of them make their runners alike. Then the
            one that leads runs forwards, and the others `follow`.

    Raises:
        StartupError: the KV cache does not fit into memory, or the kernels, the quantised weights
            or the compiled model cannot be had.
        UnsupportedModel: the model kept its own attention.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        num_blocks: int,
        block_size: int,
        cpu_kernels: CpuKernels = CpuKernels.OFF,
        quantization: Quantization = Quantization.NONE,
        compiled: Compile = Compile.OFF,
        paged_kernel: PagedKernel | None = None,
        group: RankGroup | None = None,
    ) -> None:
        model.set_attn_implementation(ATTENTION_NAME)
        self._model = model.eval()
        self._num_input_ids = num_input_ids(model)
        self._windows: frozenset[int | None] = frozenset()
        self._kernels = False
        self._paged: PagedAttention | None = None
        self._group = group
        self._tells = False
        self._quantization = quantization
        self._step_choice: StepChoice | None = None
        self.vocab_size = num_output_ids(model)
        self.max_model_len = max_model_len(model.config)
        self.dtype: torch.dtype = model.dtype
        self.device: torch.device = model.device
        self._bias = CausalBias(device=self.device, dtype=self.dtype)
        self._storage, self.pool = KVStorage(1, block_size), KVPool(1, block_size)
        self.layers: LayerShapes | None = None
        self._layers: DecoderLayers | None = None
        self._learn_shapes()
        if not self._windows:
            raise UnsupportedModel(
                model.config, "it does not call the attention function it was given"
            )
        if choice.choose(
            cpu_kernels,
            quantization=quantization,
            dtype=self.dtype,
            device=self.device,
            sharded=group is not None,
        ):
            self._adopt_kernels()
        elif paged_kernel is not None:
            self._paged = self._adopt_paged(paged_kernel)
        self._storage, self.pool = self._allocate(num_blocks), KVPool(num_blocks, block_size)
        self._step_choice = self._choose_step(compiled)
        self._tells = group is not None and group.leads

    @property
    def kernels(self) -> bool:
        """Whether the model runs on kernels of our own."""
        return self._kernels

    @property
    def weight_format(self) -> str:
        """Number format of the weights, such as "float32" or "int8"."""
        if self._quantization is not Quantization.NONE:
            return str(self._quantization)
        return str(self.dtype).removeprefix("torch.")

    @property
    def compiled(self) -> bool:
        """Whether plain forwards run compiled by now."""
        return self._step_choice is not None and self._step_choice.step is not None

    @property
    def paged(self) -> bool:
        """Whether layers attend where their keys lie, as far as they can."""
        return self._paged is not None

    @property
    def bytes_per_token(self) -> int:
        """Bytes of keys and values that one position takes, as measured."""
        return self._storage.bytes_per_token

    @property
    def windows(self) -> frozenset[int | None]:
        """Sliding windows that attention layers of the last forward asked for (None: none).

        Not told any more once the model runs on kernels of our own, or attends where keys lie.
        """
        return self._windows

    @torch.inference_mode()
    def forward(
        self,
        batch: Sequence[SequenceRows],
        *,
        num_layers: int | None = None,
        first_positions: Mapping[int, int] | None = None,
    ) -> torch.Tensor:
        """See `Runner.forward`.

        Args:
            batch: the new tokens of different sequences, at least one token each.
            num_layers: leave the model after so many layers.
            first_positions: for sequences that do not begin at position 0, by handle, where they
                do; the same at every call.
        """
        first_positions = first_positions or {}
        self._check(batch, first_positions)
        copies = self.pool.append_all((item.handle, len(item.token_ids)) for item in batch)
        step = ForwardStep(batch, num_layers, first_positions, copies, self.pool)
        try:
            if self._group is None or not self._tells:
                return self._take(step)
            self._group.tell(step.to_message())
            with self._group.in_step():
                return self._take(step)
        except BaseException:
            # Positions whose keys were perhaps never written must not look as if they were.
            for item in batch:
                self.pool.truncate(item.handle, self.pool.length(item.handle) - len(item.token_ids))
            raise

    @torch.inference_mode()
    def follow(self) -> None:
        """Runs the forwards of the rank that leads, until it ends.

        Raises:
            RanksLost: it is gone, or one of the others.
        """
        assert self._group is not None
        while (message := self._group.hear()) is not None:
            with self._group.in_step():
                self._take(ForwardStep.from_message(message))

    def _take(self, step: ForwardStep) -> torch.Tensor:
        """The forward, once the pool has room for it."""
        self._storage.copy_blocks(step.copies)
        ragged = RaggedBatch(
            step.batch,
            pool=step.places,
            bias=self._bias,
            device=self.device,
            first_positions=step.first_positions,
        )
        if step.num_layers is not None:
            return self._run_first_layers(ragged, step.num_layers)
        if any(item.readings for item in step.batch):
            return self._run_and_read(ragged, step)
        return self._run(ragged)

    def _learn_shapes(self) -> None:
        """Runs one token, so that the storage has seen every layer and so have we."""
        handle = self.pool.create()
        try:
            self._layers = DecoderLayers(self._model)
            last = len(self._layers)
            reading = LayerReading(1, hidden_of=range(last + 1), weights=True)
            self.forward([SequenceRows(handle, [0], 0, [reading])])
        except Exception as why:  # what runs is served, whether or not it can be read
            self._layers = None
            self.forward([SequenceRows(handle, [0], 0)])
            _log.info("layers_unreadable", model=type(self._model).__name__, why=str(why))
            return
        self.layers = LayerShapes(
            num_layers=last,
            hidden_size=reading.hidden_states[last].shape[1],
            attention_heads=[weights.shape[0] for weights in reading.attentions],
            tied=ties_embeddings(self._model),
        )

    @torch.inference_mode()
    def _adopt_kernels(self) -> None:
        """Puts the kernels in, if the model gives the same with them; then quantises, if wanted."""
        token_ids = [i % self._num_input_ids for i in range(self.pool.block_size)]

        def logits() -> torch.Tensor:
            self.pool = KVPool(1, self.pool.block_size)
            rows = SequenceRows(self.pool.create(), token_ids, len(token_ids))
            result = self.forward([rows])
            self._kernels = True
            return result

        self._kernels = choice.adopt(self._model, logits, quantization=self._quantization)

    def _adopt_paged(self, kernel: PagedKernel) -> PagedAttention | None:
        return paged_proof.adopt(
            kernel,
            self._call_model,
            storage=self._storage,
            block_size=self.pool.block_size,
            token_ids=self._some_ids,
            bias=self._bias,
            max_model_len=self.max_model_len,
        )

    @property
    def _some_ids(self) -> range:
        """Token ids to make texts of."""
        return range(min(self._num_input_ids, 251))

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

    def _choose_step(self, wanted: Compile) -> StepChoice | None:
        """What runs plain forwards, where there is a choice.

        Raises:
            StartupError: a compiled one is insisted on and cannot be had.
        """
        if wanted is Compile.OFF:
            return None
        if not self._kernels:
            if wanted is Compile.ON:
                raise StartupError("--compile on: only models on the CPU kernels are compiled")
            return None
        layers = self._storage.layers
        block_size = self.pool.block_size
        recipe = Recipe.of(
            self._model,
            quantization=self._quantization,
            block_size=block_size,
            kv_widths=[rows.shape[1] for rows in layers],
        )

        def proves_right(step: CompiledStep) -> bool:
            return same_bits(
                [self._call_model, lambda batch, storage: step.run(batch, storage.layers)],
                storage=self._storage,
                block_size=block_size,
                token_ids=self._some_ids,
                max_model_len=self.max_model_len,
            )

        return StepChoice(self._model, recipe, wanted, proves_right=proves_right)

    def _run(self, batch: RaggedBatch) -> torch.Tensor:
        if self._step_choice is not None:
            self._step_choice.look()
            if (step := self._step_choice.step) is not None:
                return step.run(batch, self._storage.layers)
        logits = self._call_model(batch, self._storage)
        self._windows = batch.windows
        return logits

    def _run_first_layers(self, batch: RaggedBatch, num_layers: int) -> torch.Tensor:
        assert self._layers is not None
        with self._layers.only_first(num_layers):
            return self._call_model(batch, self._storage)

    def _run_and_read(self, batch: RaggedBatch, step: ForwardStep) -> torch.Tensor:
        """As `_run`, and fills the readings."""
        assert self._layers is not None
        items = step.batch
        asking = [
            (reading, range(end - reading.num_rows, end), item.handle)
            for item, end in zip(items, accumulate(len(i.token_ids) for i in items), strict=True)
            for reading in item.readings
        ]
        weighed = [one for one in asking if one[0].weights]
        weights = AttentionWeights(
            [
                AskingRows(rows.start, len(rows), self._slots(step.places, handle))
                for _, rows, handle in weighed
            ]
        )
        layers = {layer for reading, _, _ in asking for layer in reading.layers}
        with self._layers.watched(layers) as hidden:
            logits = self._call_model(batch, self._storage, weights if weighed else None)
        self._windows = batch.windows
        for reading, rows, _ in asking:
            states = {layer: hidden[layer][rows.start : rows.stop] for layer in reading.layers}
            reading.hidden_states = {layer: states[layer] for layer in reading.hidden_of}
            reading.logits = {
                layer: self._layers.project(states[layer]) for layer in reading.logits_of
            }
        for (reading, _, _), found in zip(weighed, weights.by_rows, strict=True):
            reading.attentions = [self._of_all_heads(layer) for layer in found]
        return logits

    def _of_all_heads(self, weights: torch.Tensor) -> torch.Tensor:
        """Of one layer: [heads of this rank, ...] -> [heads, ...]."""
        if self._group is None or weights.shape[0] == num_attention_heads(self._model.config):
            return weights
        return self._group.gather_heads(weights)

    def _slots(self, places: Places, handle: int) -> torch.Tensor:
        """Of all positions of a sequence."""
        slots = places.slots(handle, 0, places.length(handle))
        return torch.tensor(slots, device=self.device)

    def _call_model(
        self, batch: RaggedBatch, storage: KVStorage, watcher: Watcher | None = None
    ) -> torch.Tensor:
        # 0 keeps all rows.
        keep = 0 if batch.logits_rows is None else batch.logits_rows
        with forward_context(batch, storage, watcher, kernels=self._kernels, paged=self._paged):
            output = self._model(
                input_ids=batch.input_ids,
                position_ids=batch.position_ids,
                use_cache=False,
                logits_to_keep=keep,
            )
        logits: torch.Tensor = output.logits[0]
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def _check(self, batch: Sequence[SequenceRows], first_positions: Mapping[int, int]) -> None:
        if not batch:
            raise ValueError("a batch holds at least one sequence")
        for handle, token_ids, num_logits, readings in batch:
            if not token_ids:
                raise ValueError(f"sequence {handle}: no new tokens")
            if not 0 <= num_logits <= len(token_ids):
                raise ValueError(
                    f"sequence {handle}: {num_logits} logits wanted of {len(token_ids)} rows"
                )
            for reading in readings:
                self._check_reading(handle, reading, len(token_ids))
            if min(token_ids) < 0 or max(token_ids) >= self._num_input_ids:
                raise ValueError(f"sequence {handle}: token id out of range")
            length = first_positions.get(handle, 0) + self.pool.length(handle) + len(token_ids)
            if length > self.max_model_len:
                raise ValueError(
                    f"sequence {handle}: longer than the model's {self.max_model_len} positions"
                )

    def _check_reading(self, handle: int, reading: LayerReading, num_rows: int) -> None:
        if self._layers is None:
            raise ValueError(f"sequence {handle}: nothing can be read of this model's layers")
        if not 1 <= reading.num_rows <= num_rows:
            raise ValueError(f"sequence {handle}: {reading.num_rows} of {num_rows} rows to read")
        if reading.layers - set(range(len(self._layers) + 1)):
            raise ValueError(f"sequence {handle}: it has {len(self._layers)} layers to read")
