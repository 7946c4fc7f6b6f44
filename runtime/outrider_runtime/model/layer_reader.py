"""Answers what sequences ask of a model's layers, beside the forward that runs their rows.

Knows nothing of storage or of how a forward is chosen: it is given one to run and watches.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from itertools import accumulate

import torch
from transformers import PreTrainedModel

from outrider_runtime.model.attention import Watcher
from outrider_runtime.model.attention_weights import AskingRows, AttentionWeights
from outrider_runtime.model.batch import Places
from outrider_runtime.model.decoder_layers import DecoderLayers
from outrider_runtime.model.forward_step import ForwardStep
from outrider_runtime.model.layer_reading import LayerReading
from outrider_runtime.model.model_facts import num_attention_heads
from outrider_runtime.model.rank_group import RankGroup

RunWatched = Callable[[Watcher | None], torch.Tensor]
"""Runs a step's batch, its layers watched or not, and returns its logits."""


class LayerReader:
    """Reads the layers of a model that runs on the engine's attention.

    Args:
        model: whose layers.
        group: the processes that share it.

    Raises:
        NoSuchLayers: its layers are no stack.
    """

    def __init__(self, model: PreTrainedModel, *, group: RankGroup | None) -> None:
        self._layers = DecoderLayers(model)
        self._device = model.device
        self._num_heads = num_attention_heads(model.config)
        self._group = group

    def __len__(self) -> int:
        """Number of layers."""
        return len(self._layers)

    def only_first(self, count: int) -> AbstractContextManager[None]:
        """See `DecoderLayers.only_first`."""
        return self._layers.only_first(count)

    def check(self, reading: LayerReading, *, handle: int, num_rows: int) -> None:
        """Refuses what cannot be read.

        Args:
            reading: what is asked.
            handle: the sequence that asks.
            num_rows: rows it has in the batch.

        Raises:
            ValueError: there are not so many rows, or no such layers.
        """
        if not 1 <= reading.num_rows <= num_rows:
            raise ValueError(f"sequence {handle}: {reading.num_rows} of {num_rows} rows to read")
        if reading.layers - set(range(len(self) + 1)):
            raise ValueError(f"sequence {handle}: it has {len(self)} layers to read")

    def read(self, step: ForwardStep, run: RunWatched) -> torch.Tensor:
        """Runs the step's forward, fills the readings and returns the logits."""
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
            logits = run(weights if weighed else None)
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
        if self._group is None or weights.shape[0] == self._num_heads:
            return weights
        return self._group.gather_heads(weights)

    def _slots(self, places: Places, handle: int) -> torch.Tensor:
        """Of all positions of a sequence."""
        slots = places.slots(handle, 0, places.length(handle))
        return torch.tensor(slots, device=self._device)
