"""The modules of a model that run on the kernels, in place of its own.

Knows nothing of how a model is run.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers import PreTrainedModel

from outrider_runtime.model.kernels.packed_linear import packed_linear
from outrider_runtime.model.kernels.row_norm import row_norm


class Replacement:
    """Linear layers and norms of a model, replaced; can be taken back.

    Args:
        model: float32, on the CPU; or without weights, on torch's meta device.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._originals: list[tuple[nn.Module, str, nn.Module]] = []
        for parent in list(model.modules()):
            for name, child in list(parent.named_children()):
                own = _replace(child)
                if own is not None:
                    self._originals.append((parent, name, child))
                    setattr(parent, name, own)

    def __len__(self) -> int:
        """Modules replaced."""
        return len(self._originals)

    def undo(self) -> None:
        """Put the model's own modules back."""
        for parent, name, child in self._originals:
            setattr(parent, name, child)


def _replace(module: nn.Module) -> nn.Module | None:
    if any(weight.dtype != torch.float32 for weight in module.parameters(recurse=False)):
        return None
    return packed_linear(module) or row_norm(module)
