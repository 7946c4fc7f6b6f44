"""Whether a model runs on the kernels: what is wanted, what the machine has, what proves right."""

from __future__ import annotations

from collections.abc import Callable

import structlog
import torch
from transformers import PreTrainedModel

from outrider_runtime.errors import StartupError
from outrider_runtime.model.kernels import library
from outrider_runtime.model.kernels.mode import CpuKernels, Quantization
from outrider_runtime.model.kernels.quantization import to_int8
from outrider_runtime.model.kernels.replacement import Replacement

_log = structlog.get_logger(__name__)

_TOLERANCE = 1e-4
"""Largest difference of a logit, relative to the largest: rounding is two orders below, a mistake
two above."""


def choose(
    wanted: CpuKernels,
    *,
    quantization: Quantization,
    dtype: torch.dtype,
    device: torch.device,
    sharded: bool = False,
) -> bool:
    """Returns whether to try the kernels, and has them compiled and loaded if so.

    Args:
        wanted: what was asked for.
        quantization: of the weights, which needs them.
        dtype: of the model.
        device: of the model.
        sharded: whether several processes have a part of its weights each.

    Raises:
        StartupError: they are insisted on, or needed for quantised weights, and cannot be had.
    """
    if wanted is CpuKernels.OFF:
        _refuse(quantization, "the CPU kernels are off (--cpu-kernels)")
        return False
    try:
        if device.type != "cpu" or dtype != torch.float32:
            raise library.KernelsUnavailable("they are for float32 on the CPU (--dtype, --device)")
        if sharded:
            raise library.KernelsUnavailable("they take whole weights, not a rank's part")
        library.load()
    except library.KernelsUnavailable as why:
        if wanted is CpuKernels.ON:
            raise StartupError(f"--cpu-kernels on: {why}") from None
        _refuse(quantization, f"the CPU kernels cannot be had: {why}")
        if device.type == "cpu":
            _log.info("kernels_unavailable", why=str(why))
        return False
    return True


def adopt(
    model: PreTrainedModel, logits: Callable[[], torch.Tensor], *, quantization: Quantization
) -> bool:
    """Puts the kernels' linear layers and norms into a model, unless its scores change.

    Args:
        model: float32, on the CPU.
        logits: runs the model on something small, the first time as it is, then on the kernels.
        quantization: how they are to hold the weights, once they have shown that they are right.

    Returns:
        Whether the model now has them; else it is as it was.

    Raises:
        StartupError: the weights are to be quantised and cannot be.
    """
    expected = logits()
    replacement = Replacement(model)
    try:
        actual = logits()
        error = float((actual - expected).abs().max() / expected.abs().max())
        why = f"its logits are off by {error:.1e} of the largest"
        right = error <= _TOLERANCE
    except (AttributeError, RuntimeError) as fault:
        why, right = str(fault), False
    if not right:
        replacement.undo()
        _refuse(quantization, f"the model does not run on the CPU kernels: {why}")
        _log.warning("kernels_rejected", model=type(model).__name__, why=why)
    elif quantization is not Quantization.NONE:
        _quantize(model, quantization, logits)
    return right


def _quantize(
    model: PreTrainedModel, quantization: Quantization, logits: Callable[[], torch.Tensor]
) -> None:
    """Quantises a model on the kernels, and logs by how much it answers otherwise."""
    expected = logits()
    try:
        result = to_int8(model)
    except RuntimeError as fault:
        _refuse(quantization, str(fault).partition("\n")[0])
        raise
    if not result.layers:
        _refuse(quantization, "the model has no linear layer")
    error = float((logits() - expected).abs().max() / expected.abs().max())
    _log.info(
        "weights_quantized",
        model=type(model).__name__,
        quantization=str(quantization),
        layers=result.layers,
        weights=result.weights,
        logits_off=round(error, 4),
    )


def _refuse(quantization: Quantization, why: str) -> None:
    if quantization is not Quantization.NONE:
        raise StartupError(f"--quantization {quantization}: {why}")
