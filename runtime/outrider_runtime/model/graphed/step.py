"""The forward of a model as graphs, one for each size: what the runner calls in place of the model.

Knows nothing of why a graph is trusted, nor of the device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import structlog
import torch

from outrider_runtime.model.batch import RaggedBatch
from outrider_runtime.model.graphed.graph import Graph, MakeGraph
from outrider_runtime.model.graphed.sizes import padded
from outrider_runtime.model.graphed.static_memory import StaticMemory
from outrider_runtime.model.kv_storage import KVStorage

_log = structlog.get_logger(__name__)

RunModel = Callable[[RaggedBatch, KVStorage], torch.Tensor]
"""Runs a forward in Python."""


class GraphedStep:
    """Forwards on static memory.

    Args:
        model: runs one in Python, on the batch it is given and nothing else.
        storage: where keys and values go; for good.
        memory: where batches are put.
        new_graph: makes graphs.
        logits: [rows of the largest size, vocab], where all graphs leave what they computed.
    """

    def __init__(
        self,
        model: RunModel,
        *,
        storage: KVStorage,
        memory: StaticMemory,
        new_graph: MakeGraph,
        logits: torch.Tensor,
    ) -> None:
        self._model = model
        self._storage = storage
        self._memory = memory
        self._new_graph = new_graph
        self._logits = logits
        self._graphs: dict[int, Graph] = {}
        self._sizes: list[int] = []

    @property
    def sizes(self) -> list[int]:
        """Rows of the graphs there are, ascending."""
        return self._sizes

    def record(self, size: int) -> None:
        """Records the forward of so many rows, all of them padding.

        Raises:
            Exception: what the model, its attention or the device have against it.
        """
        self._memory.fill(None, size)
        graph = self._new_graph()
        graph.record(lambda: self._step(size))
        self._graphs[size] = graph
        self._sizes = sorted(self._graphs)

    def run(self, batch: RaggedBatch) -> torch.Tensor | None:
        """Appends the batch's keys and values to the storage and computes logits.

        Never raises: after a fault there are no graphs any more, and the log says why.

        Returns:
            [wanted rows, vocab], the caller's own; None: the batch is not for graphs.
        """
        size = padded(batch.num_rows, self._sizes)
        if size is None:
            return None
        try:
            return self.replay(batch, size)
        except Exception as fault:  # of a driver, say; Python runs the model as well
            self._sizes = []
            self._graphs.clear()
            _log.warning("graphs_rejected", why=str(fault).partition("\n")[0])
            return None

    def replay(self, batch: RaggedBatch, size: int) -> torch.Tensor:
        """As `run`, with the graph of a size."""
        self._memory.fill(batch, size)
        self._graphs[size].replay()
        return self._wanted(batch)

    def run_in_python(self, batch: RaggedBatch, size: int) -> torch.Tensor:
        """As `replay`, without the graph."""
        self._memory.fill(batch, size)
        self._step(size)
        return self._wanted(batch)

    def _wanted(self, batch: RaggedBatch) -> torch.Tensor:
        # Whoever asked may keep them beyond the next replay.
        return self._logits[: len(batch.wanted)].clone()

    def _step(self, size: int) -> None:
        """What is recorded: of this nothing but tensors at fixed places remains."""
        batch = cast("RaggedBatch", self._memory.batch(size))
        self._logits[:size].copy_(self._model(batch, self._storage))
