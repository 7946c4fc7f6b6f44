"""What a forward hands out of its inside, for the sequences that ask.

A reading goes in empty with a sequence's rows and comes back filled. Layers are counted as in
transformers' `hidden_states`: 0 is the embeddings, i what the i-th layer gave, and the last one has
gone through the final norm as well. Knows nothing of how a model is run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch


@dataclass(slots=True, eq=False)
class LayerReading:
    """A question to a forward about the last `num_rows` new tokens of one sequence, and its answer.

    Attributes:
        num_rows: Rows asked about.
        hidden_of: Layers whose hidden states are wanted.
        logits_of: Layers whose hidden states are wanted as the output head scores them. The head
            alone: neither the final norm nor a scaling or cap of the model's logits.
        weights: Whether attention weights are wanted, of all layers.
        hidden_states: The answer, by layer: [num_rows, hidden size].
        logits: The answer, by layer: [num_rows, vocab].
        attentions: The answer, layer by layer: [heads, num_rows, keys], where keys are all
            positions of the sequence up to the last row; 0 for what a row does not see.
    """

    num_rows: int
    hidden_of: Sequence[int] = ()
    logits_of: Sequence[int] = ()
    weights: bool = False
    hidden_states: dict[int, torch.Tensor] = field(default_factory=dict)
    logits: dict[int, torch.Tensor] = field(default_factory=dict)
    attentions: list[torch.Tensor] = field(default_factory=list)

    @property
    def layers(self) -> set[int]:
        """Layers whose hidden states it takes to answer."""
        return {*self.hidden_of, *self.logits_of}
