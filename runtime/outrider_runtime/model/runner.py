"""The port to a model: what the engine asks of whatever runs it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch

from outrider_runtime.model.batch import SequenceRows
from outrider_runtime.model.kv_pool import KVPool


def nothing() -> None:
    """Does that."""


class LayerShapes(NamedTuple):
    """What a reading of a model's layers gives, as measured."""

    num_layers: int
    """Hidden states are those of layers 0 to `num_layers`, both included."""
    hidden_size: int
    attention_heads: Sequence[int]
    """Query heads of each layer that has attention."""
    tied: bool
    """Whether the output head is the embedding."""


class GreedySteps(NamedTuple):
    """What several forwards in a row found, sequence by sequence; a column for each forward."""

    token_ids: list[list[int]]
    log_probs: list[list[float]]
    """Natural logarithms of their probabilities; empty if not asked for."""


class Runner(Protocol):
    """A model together with the positions it has already seen."""

    pool: KVPool
    vocab_size: int
    """Columns of the logits."""
    max_model_len: int
    """Positions the model was made for."""
    dtype: torch.dtype
    layers: LayerShapes | None
    """What can be read of its layers; None: nothing, and no `num_layers` either."""

    def forward(
        self,
        batch: Sequence[SequenceRows],
        *,
        num_layers: int | None = None,
        before: Callable[[], None] = nothing,
    ) -> torch.Tensor:
        """Appends the new tokens to their sequences and computes logits.

        Args:
            batch: the new tokens of different sequences, at least one token each.
            num_layers: leave the model after so many layers, for its final norm and output head.
                The new positions then have no keys in the layers behind.
            before: called once everything is laid out, when the model is about to run: from then on
                the interpreter is free for others.

        Returns:
            float32 (float64 for a float64 model) [sum of num_logits, vocab_size], in batch order.

        Raises:
            OutOfBlocks: the pool cannot hold the new tokens; nothing was changed.
            KeyError: no such sequence; nothing was changed.
            ValueError: bad rows; nothing was changed.
        """
        ...

    @property
    def runs_greedily(self) -> bool:
        """Whether `forward_greedily` can be called. It may become true at any time."""
        ...

    def forward_greedily(
        self,
        batch: Sequence[SequenceRows],
        num_steps: int,
        *,
        least_log_probs: Sequence[float] | None = None,
        before: Callable[[], None] = nothing,
    ) -> GreedySteps | None:
        """As `forward`, then goes on with the token that each sequence's last row scores highest.

        In one go: nobody can say anything in between.

        Args:
            batch: the new tokens of different sequences, whose last row alone wants logits; nothing
                is read of layers.
            num_steps: forwards, at least 1. What each but the last found is in the cache then.
            least_log_probs: asks for log-probabilities, and for an end as soon as each sequence has
                had a token of less than its own here.
            before: as `forward`.

        Returns:
            What they found; None where a score is not finite, and then nothing was changed.

        Raises:
            OutOfBlocks: the pool cannot hold the new tokens; nothing was changed.
            ValueError: bad rows; nothing was changed.
        """
        ...
