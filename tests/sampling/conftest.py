from __future__ import annotations

import pytest
import torch
from outrider_runtime.model import arrays, scores, selection
from outrider_runtime.model.arrays import Array, Arrays


@pytest.fixture(params=["numpy", "torch"])
def either_side(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Runs the test on numpy, as on a CPU, and on torch, as on an accelerator."""
    if request.param == "torch":

        def arrays_of(logits: torch.Tensor) -> tuple[Arrays, Array]:
            return arrays.on_device(logits.device), logits.detach().float()

        for module in (scores, selection):
            monkeypatch.setattr(module, "arrays_of", arrays_of)
    return str(request.param)
