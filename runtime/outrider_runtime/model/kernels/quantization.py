"""Quantises the weights of a model on the kernels.

Knows nothing of how a model is run or what it was loaded from.
"""

from __future__ import annotations

from typing import NamedTuple

from transformers import PreTrainedModel

from outrider_runtime.model.kernels.int8_linear import Int8Linear
from outrider_runtime.model.kernels.packed_linear import PackedLinear


class Quantized(NamedTuple):
    """What became of a model."""

    layers: int
    """Linear layers that were quantised."""
    weights: int
    """Weights in them."""


def to_int8(model: PreTrainedModel) -> Quantized:
    """Replaces the linear layers, the output head among them. Embeddings stay as they are.

    Args:
        model: on the kernels (`Replacement`).

    Raises:
        RuntimeError: a weight is not a finite number.
    """
    layers, weights = 0, 0
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, PackedLinear):
                setattr(parent, name, Int8Linear(child))
                layers += 1
                weights += child.in_features * child.out_features
    return Quantized(layers, weights)
