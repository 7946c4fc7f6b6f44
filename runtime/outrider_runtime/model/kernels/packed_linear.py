"""Linear layers whose weights lie as the kernels read them, in place of a model's own.

Knows nothing of attention or batches.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import nn
from transformers import PreTrainedModel
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


class Replacement:
    """The linear layers of a model, replaced; can be taken back.

    Takes every float32 `nn.Linear` and `Conv1D` that has no hooks and no class of its own: a
    subclass may compute something else.

    Args:
        model: float32, on the CPU.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._originals: list[tuple[nn.Module, str, nn.Module]] = []
        for parent in list(model.modules()):
            for name, child in list(parent.named_children()):
                packed = _pack(child)
                if packed is not None:
                    self._originals.append((parent, name, child))
                    setattr(parent, name, packed)

    def __len__(self) -> int:
        """Layers replaced."""
        return len(self._originals)

    def undo(self) -> None:
        """Put the model's own layers back."""
        for parent, name, child in self._originals:
            setattr(parent, name, child)


def _pack(layer: nn.Module) -> PackedLinear | None:
    if type(layer) not in (nn.Linear, Conv1D):
        return None
    weight = cast("torch.Tensor", layer.weight)
    if type(layer) is Conv1D:
        weight = weight.T
    if weight.dtype != torch.float32 or weight.device.type != "cpu":
        return None
    return PackedLinear(weight, cast("torch.Tensor | None", layer.bias))
