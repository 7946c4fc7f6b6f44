"""Linear layers whose weights are held as integers of 8 bits, in place of those on the kernels.

Inputs, sums and outputs stay float32. Knows nothing of where in a model a layer stands.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import nn

from outrider_runtime.model.kernels.packed_linear import PackedLinear


class Int8Linear(nn.Module):
    """Computes x (scale * integers)^T + bias, a row always to the same bit.

    Symmetric, a scale for each output: the largest weight of an output is 127 of its scale, the
    others are rounded to the nearest.

    Args:
        layer: float32, whose weights are quantised.
    """

    def __init__(self, layer: PackedLinear) -> None:
        super().__init__()
        self.out_features, self.in_features = layer.out_features, layer.in_features
        packed, scales = torch.ops.outrider.pack_linear_int8(layer.packed)
        self.register_buffer("packed", packed)
        self.register_buffer("scales", scales)
        self.register_buffer("bias", cast("torch.Tensor | None", layer.bias))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., inputs] -> [..., outputs]."""
        result = torch.ops.outrider.packed_linear_int8(
            x, self.packed, self.scales, self.bias, self.out_features
        )
        return cast("torch.Tensor", result)
