"""Which kernel for paged attention this machine has: the first choice, then the next one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import structlog
import torch

from outrider_runtime.model import flex_kernel, varlen_kernel
from outrider_runtime.model.paged_attention import KernelUnavailable, PagedKernel

_log = structlog.get_logger(__name__)

Load = Callable[..., PagedKernel]

_CHOICES: Sequence[tuple[str, Load]] = (
    (varlen_kernel.VarlenAttention.name, varlen_kernel.load),
    (flex_kernel.FlexAttention.name, flex_kernel.load),
)
"""Best first. Behind the last is attention that gathers keys (`attention.gathered_attention`)."""


def find(*, device: torch.device, dtype: torch.dtype) -> PagedKernel | None:
    """Returns the kernel for a model on this device, of this precision.

    None if there is none; on a GPU a log line for each choice says why.
    """
    return None if device.type != "cuda" else _first(_CHOICES, device=device, dtype=dtype)


def _first(
    choices: Sequence[tuple[str, Load]], *, device: torch.device, dtype: torch.dtype
) -> PagedKernel | None:
    for number, (name, load) in enumerate(choices, start=1):
        try:
            kernel = load(device=device, dtype=dtype)
        except KernelUnavailable as why:
            _log.info("paged_attention_unavailable", kernel=name, why=str(why))
            continue
        otherwise = partial(_first, choices[number:], device=device, dtype=dtype)
        return kernel._replace(otherwise=otherwise)
    return None
