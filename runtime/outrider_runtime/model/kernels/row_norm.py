"""Norms computed by the kernels, in place of a model's own.

Knows nothing of where in a model they stand.
"""

from __future__ import annotations

import copy
from typing import cast

import torch
from torch import nn

_TOLERANCE = 1e-5
_EPSILONS = ("variance_epsilon", "eps")  # what architectures call it


class RmsNorm(nn.Module):
    """weight * x / sqrt(mean(x^2) + eps) over the last dimension.

    Args:
        weight: float32 [size], on the CPU.
        eps: what keeps the root from zero.
    """

    def __init__(self, weight: torch.Tensor, eps: float) -> None:
        super().__init__()
        self.register_buffer("weight", weight.detach())
        self._eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., size] -> the same shape."""
        return cast("torch.Tensor", torch.ops.outrider.rms_norm(x, self.weight, self._eps))


class LayerNorm(nn.Module):
    """weight * (x - mean) / sqrt(variance + eps) + bias over the last dimension.

    Args:
        weight: float32 [size], on the CPU.
        bias: float32 [size], or None.
        eps: what keeps the root from zero.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, eps: float) -> None:
        super().__init__()
        self.register_buffer("weight", weight.detach())
        self.register_buffer("bias", None if bias is None else bias.detach())
        self._eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., size] -> the same shape."""
        result = torch.ops.outrider.layer_norm(x, self.weight, self.bias, self._eps)
        return cast("torch.Tensor", result)


def row_norm(module: nn.Module) -> RmsNorm | LayerNorm | None:
    """Returns what computes the same as a norm of a model; None: the module is something else.

    Each architecture has an RMS norm of its own, most of which are alike: what one computes is
    found by trying it on numbers. The weights do not matter for that, and may be absent.
    """
    if type(module) is nn.LayerNorm:
        # Without weights it is rare; over several dimensions it is not a row's own affair.
        if module.weight is None or len(module.normalized_shape) != 1:
            return None
        return LayerNorm(module.weight, module.bias, module.eps)
    weight = getattr(module, "weight", None)
    eps = next((vars(module)[name] for name in _EPSILONS if name in vars(module)), None)
    if (
        not type(module).__name__.endswith("RMSNorm")
        or list(dict(module.named_parameters())) != ["weight"]
        or list(module.buffers())
        or not isinstance(weight, torch.Tensor)
        or weight.ndim != 1
        or not isinstance(eps, float)
    ):
        return None
    offset = _offset(module, weight.shape[0], eps)
    return None if offset is None else RmsNorm(weight if offset == 0 else weight + offset, eps)


def _offset(module: nn.Module, size: int, eps: float) -> float | None:
    """What the module adds to its weights before it multiplies; None: its formula is another."""
    generator = torch.Generator().manual_seed(0)
    twin = copy.deepcopy(module).to_empty(device="cpu").float()
    weight = torch.rand(size, generator=generator)
    x = torch.randn(3, size, generator=generator)
    cast("torch.Tensor", twin.weight).data.copy_(weight)
    actual = twin(x)
    for offset in (0.0, 1.0):  # Gemma and its kin keep what differs from one
        expected = torch.ops.outrider.rms_norm(x, weight + offset, eps)
        if actual.shape == x.shape and torch.allclose(actual, expected, rtol=_TOLERANCE):
            return offset
    return None
