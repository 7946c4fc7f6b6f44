"""Where a model runs and in which precision: the one place that decides.

Knows nothing of models beyond the dtype that their config names.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from outrider_runtime.errors import StartupError

DTYPES: Mapping[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}
"""Precisions by the names that flags use, besides `auto`."""


def resolve_device(name: str) -> torch.device:
    """Returns the device of `auto` (a GPU where there is one), `cpu`, `cuda` or `cuda:N`.

    Raises:
        StartupError: an unknown name, or a GPU that is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdecimal()):
        raise StartupError(f"unknown device {name!r}: use auto, cpu, cuda or cuda:N")
    if kind == "cuda" and torch.cuda.device_count() <= int(index or 0):
        raise StartupError(
            f"device {name!r} is not available: this machine shows {torch.cuda.device_count()} "
            "CUDA devices to torch; use --device cpu"
        )
    return torch.device(name)


def resolve_dtype(name: str, *, declared: torch.dtype | None, device: torch.device) -> torch.dtype:
    """Returns the precision of `auto` or of a name in `DTYPES`.

    `auto` is what the model's config declares, float32 if nothing. On the CPU it widens 16 bit to
    float32: 16-bit matrix products are many times slower there.

    Args:
        name: `auto` or a key of `DTYPES`.
        declared: dtype in the model's config, if any.
        device: where the model will run.

    Raises:
        StartupError: an unknown name.
    """
    if name == "auto":
        if declared is None or (device.type == "cpu" and declared.itemsize < 4):
            return torch.float32
        return declared
    if name not in DTYPES:
        raise StartupError(f"unknown dtype {name!r}: use auto, {', '.join(DTYPES)}")
    return DTYPES[name]


def is_out_of_memory(error: BaseException) -> bool:
    """Returns whether the error means that the device's memory does not suffice."""
    # The CPU allocator raises a plain RuntimeError.
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        isinstance(error, RuntimeError) and "allocate memory" in str(error)
    )
