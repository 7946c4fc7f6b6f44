"""Runs a decoder on ragged batches, all rows of all sequences in one forward, on the paged pool.

Knows nothing of requests, sampling or drafts: token ids in, logits out, positions in the pool.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import structlog
import torch
from transformers import PreTrainedModel

from outrider_runtime.errors import StartupError
from outrider_runtime.model import paged_proof
from outrider_runtime.model.attention import ATTENTION_NAME, Watcher, forward_context
from outrider_runtime.model.batch import RaggedBatch, SequenceRows, last_places
from outrider_runtime.model.causal_bias import CausalBias
from outrider_runtime.model.compiled import choice as step_choice
from outrider_runtime.model.compiled.choice import StepChoice
from outrider_runtime.model.compiled.mode import Compile
from outrider_runtime.model.device import is_out_of_memory
from outrider_runtime.model.forward_step import ForwardStep
from outrider_runtime.model.graphed import choice as graph_choice
from outrider_runtime.model.graphed.graph import MakeGraph
from outrider_runtime.model.graphed.step import GraphedStep
from outrider_runtime.model.kernels import choice
from outrider_runtime.model.kernels.mode import CpuKernels, Quantization
from outrider_runtime.model.kv_pool import KVPool
from outrider_runtime.model.kv_storage import KVStorage
from outrider_runtime.model.layer_reader import LayerReader
from outrider_runtime.model.layer_reading import LayerReading
from outrider_runtime.model.model_facts import (
    max_model_len,
    num_input_ids,
    num_output_ids,
    ties_embeddings,
)
from outrider_runtime.model.paged_attention import PagedAttention, PagedKernel
from outrider_runtime.model.rank_group import RankGroup
from outrider_runtime.model.row_rules import RowRules
from outrider_runtime.model.runner import GreedySteps, LayerShapes, nothing
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
        compiled: whether to run forwards as one program: compiled, where the model runs on those
            kernels, as graphs, where it attends where keys lie.
        paged_kernel: attends where keys lie, in layers that it fits, if it gives the same.
        new_graph: makes graphs of the device, if it has any.
        group: the processes that share the model; all of them make their runners alike. Then the
            one that leads runs forwards, and the others `follow`.

    Raises:
        StartupError: the KV cache does not fit into memory, or the kernels, the quantised weights
            or forwards as one program cannot be had.
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
        new_graph: MakeGraph | None = None,
        group: RankGroup | None = None,
    ) -> None:
        model.set_attn_implementation(ATTENTION_NAME)
        self._model = model.eval()
        self._windows: frozenset[int | None] = frozenset()
        self._kernels = False
        self._paged: PagedAttention | None = None
        self._group = group
        self._tells = False
        self._quantization = quantization
        self._step_choice: StepChoice | None = None
        self._graphs: GraphedStep | None = None
        self.vocab_size = num_output_ids(model)
        self.max_model_len = max_model_len(model.config)
        self._rules = RowRules(num_input_ids(model), self.max_model_len)
        self.dtype: torch.dtype = model.dtype
        self.device: torch.device = model.device
        self._bias = CausalBias(device=self.device, dtype=self.dtype)
        self._storage, self.pool = KVStorage(1, block_size), KVPool(1, block_size)
        self.layers: LayerShapes | None = None
        self._reader: LayerReader | None = None
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
        if compiled is Compile.OFF or self._paged is None or group is not None:
            new_graph = None
        spare = 0 if new_graph is None else graph_choice.SPARE_BLOCKS
        self._storage = self._allocate(num_blocks, spare=spare)
        self.pool = KVPool(num_blocks, block_size)
        if self._kernels and compiled is not Compile.OFF:
            self._step_choice = self._choose_step(compiled)
        if new_graph is not None:
            self._graphs = self._adopt_graphs(new_graph)
        if compiled is Compile.ON and self._step_choice is None and self._graphs is None:
            raise StartupError(
                "--compile on: only models on the CPU kernels, and on GPUs with paged attention, "
                "run as one program; the log may say more"
            )
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
    def graphed(self) -> bool:
        """Whether plain forwards of few rows run as graphs."""
        return self._graphs is not None and bool(self._graphs.sizes)

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
        before: Callable[[], None] = nothing,
    ) -> torch.Tensor:
        """See `Runner.forward`.

        Args:
            batch: the new tokens of different sequences, at least one token each.
            num_layers: leave the model after so many layers.
            first_positions: for sequences that do not begin at position 0, by handle, where they
                do; the same at every call.
            before: called when the model is about to run.
        """
        first_positions = first_positions or {}
        self._rules.check(
            batch, places=self.pool, first_positions=first_positions, reader=self._reader
        )
        copies = self.pool.append_all((item.handle, len(item.token_ids)) for item in batch)
        step = ForwardStep(batch, num_layers, first_positions, copies, self.pool)
        try:
            if self._group is None or not self._tells:
                return self._take(step, before)
            self._group.tell(step.to_message())
            with self._group.in_step():
                return self._take(step, before)
        except BaseException:
            # Positions whose keys were perhaps never written must not look as if they were.
            for item in batch:
                self.pool.truncate(item.handle, self.pool.length(item.handle) - len(item.token_ids))
            raise

    @property
    def runs_greedily(self) -> bool:
        """See `Runner.runs_greedily`."""
        return (
            self._step_choice is not None
            and self._step_choice.step is not None
            and self._rules.num_input_ids >= self.vocab_size
        )

    @torch.inference_mode()
    def forward_greedily(
        self,
        batch: Sequence[SequenceRows],
        num_steps: int,
        *,
        least_log_probs: Sequence[float] | None = None,
        before: Callable[[], None] = nothing,
    ) -> GreedySteps | None:
        """See `Runner.forward_greedily`."""
        assert self._step_choice is not None
        assert self._step_choice.step is not None
        self._rules.check(batch, places=self.pool, first_positions={}, reader=None)
        later = num_steps - 1
        handles = [item.handle for item in batch]
        lengths = {handle: self.pool.length(handle) for handle in handles}
        try:
            copies = self.pool.append_all((item.handle, len(item.token_ids)) for item in batch)
            self._storage.copy_blocks(copies)
            ragged = RaggedBatch(
                batch, pool=self.pool, bias=self._bias, device=self.device, first_positions={}
            )
            # The end of each table is its sequence's own by now: nothing more to copy.
            self.pool.append_all((handle, later) for handle in handles)
            places = torch.from_numpy(last_places(self.pool, handles, later))
            least = None if least_log_probs is None else torch.tensor(least_log_probs)
            inputs = self._step_choice.step.inputs(ragged, self._storage.layers)
            before()
            token_ids, scores, log_probs = self._step_choice.step.run_greedily(
                inputs, places, least
            )
            finite = bool(scores.isfinite().all())
        except BaseException:
            self._take_back(lengths)
            raise
        if not finite:
            self._take_back(lengths)
            return None
        for item in batch if len(token_ids) < num_steps else ():
            length = lengths[item.handle] + len(item.token_ids) + len(token_ids) - 1
            self.pool.truncate(item.handle, length)
        return GreedySteps(token_ids.T.tolist(), [] if log_probs is None else log_probs.T.tolist())

    def _take_back(self, lengths: Mapping[int, int]) -> None:
        """Leaves so many positions of each sequence in the pool."""
        for handle, length in lengths.items():
            self.pool.truncate(handle, length)

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

    def _take(self, step: ForwardStep, before: Callable[[], None] = nothing) -> torch.Tensor:
        """The forward, once the pool has room for it."""
        self._storage.copy_blocks(step.copies)
        ragged = RaggedBatch(
            step.batch,
            pool=step.places,
            bias=self._bias,
            device=self.device,
            first_positions=step.first_positions,
        )
        if step.num_layers is None and not any(item.readings for item in step.batch):
            return self._run(ragged, before)
        before()
        if step.num_layers is not None:
            return self._run_first_layers(ragged, step.num_layers)
        return self._run_and_read(ragged, step)

    def _learn_shapes(self) -> None:
        """Runs one token, so that the storage has seen every layer and so have we."""
        handle = self.pool.create()
        try:
            self._reader = LayerReader(self._model, group=self._group)
            last = len(self._reader)
            reading = LayerReading(1, hidden_of=range(last + 1), weights=True)
            self.forward([SequenceRows(handle, [0], 0, [reading])])
        except Exception as why:  # what runs is served, whether or not it can be read
            self._reader = None
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
        token_ids = [i % self._rules.num_input_ids for i in range(self.pool.block_size)]

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
        return range(min(self._rules.num_input_ids, 251))

    @torch.inference_mode()
    def _allocate(self, num_blocks: int, *, spare: int) -> KVStorage:
        try:
            return self._storage.resized(num_blocks + spare)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            tokens = num_blocks * self.pool.block_size
            gigabytes = tokens * self.bytes_per_token / 2**30
            raise StartupError(
                f"a KV cache of {tokens} tokens ({gigabytes:.1f} GiB) does not fit into the memory "
                f"of {self.device}: make it smaller"
            ) from error

    def _choose_step(self, wanted: Compile) -> StepChoice:
        return step_choice.choose(
            wanted,
            self._model,
            self._call_model,
            quantization=self._quantization,
            storage=self._storage,
            block_size=self.pool.block_size,
            token_ids=self._some_ids,
            max_model_len=self.max_model_len,
        )

    def _adopt_graphs(self, new_graph: MakeGraph) -> GraphedStep | None:
        return graph_choice.adopt(
            new_graph,
            self._call_model,
            storage=self._storage,
            num_blocks=self.pool.num_blocks,
            block_size=self.pool.block_size,
            token_ids=self._some_ids,
            bias=self._bias,
            max_model_len=self.max_model_len,
            vocab_size=self.vocab_size,
        )

    def _run(self, batch: RaggedBatch, before: Callable[[], None]) -> torch.Tensor:
        if self._step_choice is not None:
            self._step_choice.look()
            if (step := self._step_choice.step) is not None:
                inputs = step.inputs(batch, self._storage.layers)
                before()
                return step.run(inputs)
        before()
        if self._graphs is not None and (logits := self._graphs.run(batch)) is not None:
            return logits
        logits = self._call_model(batch, self._storage)
        self._windows = batch.windows
        return logits

    def _run_first_layers(self, batch: RaggedBatch, num_layers: int) -> torch.Tensor:
        assert self._reader is not None
        with self._reader.only_first(num_layers):
            return self._call_model(batch, self._storage)

    def _run_and_read(self, batch: RaggedBatch, step: ForwardStep) -> torch.Tensor:
        """As `_run`, and fills the readings."""
        assert self._reader is not None
        logits = self._reader.read(
            step, lambda watcher: self._call_model(batch, self._storage, watcher)
        )
        self._windows = batch.windows
        return logits

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
