"""Whether a model runs on the kernels: what is wanted, what the machine has, what proves right."""

from __future__ import annotations

from collections.abc import Callable

import structlog
import torch
from transformers import PreTrainedModel

from outrider_runtime.errors import StartupError
from outrider_runtime.model.kernels import library
from outrider_runtime.model.kernels.mode import CpuKernels
from outrider_runtime.model.kernels.replacement import Replacement

_log = structlog.get_logger(__name__)

_TOLERANCE = 1e-4
"""Largest difference of a logit, relative to the largest: rounding is two orders below, a mistake
two above."""


def choose(
    wanted: CpuKernels, *, dtype: torch.dtype, device: torch.device, sharded: bool = False
) -> bool:
    """Returns whether to try the kernels, and has them compiled and loaded if so.

    Args:
        wanted: what was asked for.
        dtype: of the model.
        device: of the model.
        sharded: whether several processes have a part of its weights each.

    Raises:
        StartupError: they are insisted on and cannot be had.
    """
    if wanted is CpuKernels.OFF:
        return False
    try:
        if device.type != "cpu" or dtype != torch.float32:
            raise library.KernelsUnavailable("they are for float32 on the CPU")
        if sharded:
            raise library.KernelsUnavailable("they take whole weights, not a rank's part")
        library.load()
    except library.KernelsUnavailable as why:
        if wanted is CpuKernels.ON:
            raise StartupError(f"--cpu-kernels on: {why}") from None
        if device.type == "cpu":
            _log.info("kernels_unavailable", why=str(why))
        return False
    return True


def adopt(model: PreTrainedModel, logits: Callable[[], torch.Tensor]) -> bool:
    """Puts the kernels' linear layers and norms into a model, unless its scores change.

    Args:
        model: float32, on the CPU.
        logits: runs the model on something small, the first time as it is, then on the kernels.

    Returns:
        Whether the model now has them; else it is as it was.
    """
    expected = logits()
    replacement = Replacement(model)
    try:
        actual = logits()
        error = float((actual - expected).abs().max() / expected.abs().max())
        if error <= _TOLERANCE:
            return True
        why = f"its logits are off by {error:.1e} of the largest"
    except (AttributeError, RuntimeError) as fault:
        why = str(fault)
    replacement.undo()
    _log.warning("kernels_rejected", model=type(model).__name__, why=why)
    return False
