"""What a sequence tells of its inside: scores, logits, hidden states, attention weights.

Asks the forwards for them and passes on what has become certain, each once: what belonged to a
rejected draft never leaves, and what a preempted sequence is fed again is not told again. Knows
nothing of gRPC.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from outrider_runtime.model.layer_reading import LayerReading

from outrider_target.requests.request import TensorKind, TensorWishes


@dataclass(frozen=True, slots=True, eq=False)
class TokenTensor:
    """A tensor, in the memory of the host.

    Attributes:
        kind: What it holds; `tensors.proto` tells the shapes.
        index: Of the generated token, for scores and logits; else the position in the sequence.
        values: The numbers.
    """

    kind: TensorKind
    index: int
    values: torch.Tensor


class TensorReport:
    """The tensors of one sequence, as they become known."""

    def __init__(self, wishes: TensorWishes, num_prompt_tokens: int) -> None:
        self._kinds = wishes.kinds
        self._layers: Sequence[int] = (
            range(wishes.num_layers + 1) if TensorKind.HIDDEN_STATES in wishes.kinds else ()
        )
        self._num_prompt_tokens = num_prompt_tokens
        self._num_told = 0  # positions whose layers have been told
        self._reading: LayerReading | None = None
        self._end = 0  # positions of the sequence in the forward that is read, draft included

    @property
    def kinds(self) -> frozenset[TensorKind]:
        """What is wanted."""
        return self._kinds

    @property
    def reads_layers(self) -> bool:
        """Whether it wants what only a forward over the very positions can tell."""
        return bool(self._layers) or self.weights

    @property
    def layers(self) -> Sequence[int]:
        """Layers whose hidden states are wanted."""
        return self._layers

    @property
    def weights(self) -> bool:
        """Whether attention weights are wanted."""
        return TensorKind.ATTENTIONS in self._kinds

    def use(self, reading: LayerReading, *, end: int) -> None:
        """Tell from somebody else's reading of a forward that ends at position `end`."""
        self._reading, self._end = reading, end

    def reading(self, num_cached: int, num_fed: int) -> LayerReading | None:
        """What to read of a forward that feeds `num_fed` tokens after `num_cached`."""
        num_rows = num_cached + num_fed - max(num_cached, self._num_told)
        self._reading, self._end = None, num_cached + num_fed
        if self.reads_layers and num_rows > 0:
            self._reading = LayerReading(num_rows, hidden_of=self._layers, weights=self.weights)
        return self._reading

    def of_positions(self, *, certain: int) -> Iterator[TokenTensor]:
        """What the last forward told of the positions that nobody can take back.

        Args:
            certain: Positions of the sequence that are committed.
        """
        reading, end = self._reading, min(certain, self._end)
        if reading is None or end <= self._num_told:
            return
        first = self._num_told
        offset = first - (self._end - reading.num_rows)
        rows = slice(offset, offset + end - first)
        self._num_told = end
        # All rows in one go: one by one would keep the whole batch waiting.
        if self._layers:
            states = torch.stack([reading.hidden_states[layer][rows] for layer in self._layers], 1)
            for position, values in enumerate(states.cpu(), first):
                yield TokenTensor(TensorKind.HIDDEN_STATES, position, values)
        if self.weights:
            weights = torch.stack(
                [layer[:, rows].transpose(0, 1) for layer in reading.attentions], 1
            )
            for position, values in enumerate(weights.cpu(), first):
                # What a position sees ends with itself.
                yield TokenTensor(TensorKind.ATTENTIONS, position, values[..., : position + 1])

    def of_tokens(
        self, rows: Mapping[TensorKind, torch.Tensor], *, count: int, length: int
    ) -> Iterator[TokenTensor]:
        """Scores and logits of the `count` tokens that end a sequence of `length`.

        Args:
            rows: [at least `count`, vocab] by kind.
            count: Tokens.
            length: Of the whole sequence, with them.
        """
        first = length - count - self._num_prompt_tokens
        for kind, values in rows.items():
            # A copy: a view would keep the whole round's alive until the client has read it.
            for index, row in enumerate(values[:count].to("cpu", copy=True), first):
                yield TokenTensor(kind, index, row)
