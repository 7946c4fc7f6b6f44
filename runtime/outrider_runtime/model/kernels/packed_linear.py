"""Linear layers whose weights lie as the kernels read them, in place of a model's own.

Knows nothing of attention or batches.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D


class PackedLinear(nn.Module):
    """Computes what the layer it replaces computes, a row always to the same bit.

    Args:
        weight: float32 [outputs, inputs], on the CPU.
        bias: float32 [outputs], or None.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.register_buffer("packed", torch.ops.outrider.pack_linear(weight.detach()))
        self.register_buffer("bias", None if bias is None else bias.detach())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., inputs] -> [..., outputs]."""
        result = torch.ops.outrider.packed_linear(x, self.packed, self.bias, self.out_features)
        return cast("torch.Tensor", result)


def packed_linear(layer: nn.Module) -> PackedLinear | None:
    """Returns what computes the same as an `nn.Linear` or `Conv1D`; None: it is something else.

    A subclass may compute something else.
    """
    if type(layer) not in (nn.Linear, Conv1D):
        return None
    weight = cast("torch.Tensor", layer.weight)
    if type(layer) is Conv1D:
        weight = weight.T
    return PackedLinear(weight, cast("torch.Tensor | None", layer.bias))
