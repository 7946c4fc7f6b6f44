"""The hidden states of a text as contrastive search remembers them: one direction per position.

Asked of the forwards as the positions are fed; what a preempted sequence is fed again is known.
"""

from __future__ import annotations

import torch
from outrider_runtime.model.degeneration import directions
from outrider_runtime.model.layer_reading import LayerReading

from outrider_target.decoding.tensors import TensorReport


class ContrastiveContext:
    """The positions of one sequence.

    Args:
        layer: Whose hidden states count: the last.
        report: Has its own wishes as to the same positions; None when there are none.
    """

    def __init__(self, layer: int, report: TensorReport | None) -> None:
        self._layer = layer
        self._report = report
        self._known: torch.Tensor | None = None  # [at least num_known, hidden size]
        self._num_known = 0
        self._reading: LayerReading | None = None

    @property
    def directions(self) -> torch.Tensor:
        """Of all known positions: [positions, hidden size]."""
        assert self._known is not None
        return self._known[: self._num_known]

    def reading(self, num_cached: int, num_fed: int) -> LayerReading | None:
        """What to read of a forward that feeds a part of the prompt."""
        num_rows = num_cached + num_fed - max(num_cached, self._num_known)
        self._reading = None
        if num_rows > 0:
            self._reading = self.question(num_rows)
            if self._report is not None:
                self._report.use(self._reading, end=num_cached + num_fed)
        return self._reading

    def question(self, num_rows: int) -> LayerReading:
        """What to read of `num_rows` positions."""
        if self._report is None:
            return LayerReading(num_rows, hidden_of=[self._layer])
        hidden_of = sorted({*self._report.layers, self._layer})
        return LayerReading(num_rows, hidden_of=hidden_of, weights=self._report.weights)

    def remember_prompt(self) -> None:
        """Take in what the last forward over the prompt told."""
        if self._reading is not None:
            self.remember(self.directions_in(self._reading))
            self._reading = None

    def directions_in(self, reading: LayerReading) -> torch.Tensor:
        """What a reading tells: [rows, hidden size]."""
        return directions(reading.hidden_states[self._layer])

    def remember(self, more: torch.Tensor) -> None:
        """Take in the directions of further positions."""
        length = self._num_known + len(more)
        if self._known is None or len(self._known) < length:
            # Twice the room each time: a copy for each token would cost more than the token.
            grown = more.new_empty(2 * length, more.shape[1])
            if self._known is not None:
                grown[: self._num_known] = self.directions
            self._known = grown
        self._known[self._num_known : length] = more
        self._num_known = length
