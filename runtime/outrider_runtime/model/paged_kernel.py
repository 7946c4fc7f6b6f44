"""Which kernel for paged attention this machine has: torch's, if it reads block tables.

Features are asked for by signature. The kernels that torch itself brings read no block tables;
those of FlashAttention do, on the GPUs they were made for, once torch was told to use them.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import NamedTuple

import structlog
import torch

from outrider_runtime.model.paged_attention import Attend

_log = structlog.get_logger(__name__)

_NEEDED = {"scale", "window_size", "enable_gqa", "seqused_k", "block_table", "num_splits"}
_DTYPES = (torch.bfloat16, torch.float16)
_IMPLEMENTATIONS = {9: "FA3", 10: "FA4"}
"""By the major number of a GPU's compute capability, what reads block tables there."""


class PagedKernel(NamedTuple):
    """A kernel, and what to call if it is not used after all."""

    attend: Attend
    release: Callable[[], None]


class _Unavailable(Exception):
    """There is no such kernel; says why in one line."""


def find(*, device: torch.device, dtype: torch.dtype) -> PagedKernel | None:
    """Returns the kernel for a model on this device, of this precision.

    None if there is none; on a GPU a log line then says why.
    """
    if device.type != "cuda":
        return None
    try:
        if dtype not in _DTYPES:
            raise _Unavailable("it is for bfloat16 and float16 (--dtype)")
        return PagedKernel(_attention(), _activate(device))
    except _Unavailable as why:
        _log.info("paged_attention_unavailable", why=str(why))
        return None


def reads_pages(attend: Attend) -> bool:
    """Returns whether a function has all parameters that paged attention needs."""
    return set(inspect.signature(attend).parameters) >= _NEEDED


def _attention() -> Attend:
    try:
        attend: Attend = importlib.import_module("torch.nn.attention.varlen").varlen_attn
    except (ImportError, AttributeError):
        raise _Unavailable("this torch has no attention for ragged batches") from None
    if not reads_pages(attend):
        raise _Unavailable("this torch's attention for ragged batches reads no block tables")
    return attend


def _activate(device: torch.device) -> Callable[[], None]:
    """Makes torch use an implementation that reads block tables; returns what undoes it."""
    choice = importlib.import_module("torch.nn.attention")
    try:
        activate = choice.activate_flash_attention_impl
        undo: Callable[[], None] = choice.restore_flash_attention_impl
        if choice.current_flash_attention_impl() is not None:
            return lambda: None  # the operator's own choice: the proof tells what it is worth
    except AttributeError:
        raise _Unavailable("this torch takes no other implementation of attention") from None
    major, minor = torch.cuda.get_device_capability(device)
    name = _IMPLEMENTATIONS.get(major)
    if name is None:
        raise _Unavailable(f"no implementation reads block tables on compute {major}.{minor}")
    try:
        activate(name)
    except Exception as fault:  # packages of others, which raise what they like
        raise _Unavailable(f"{name} cannot be had: {fault}".splitlines()[0]) from fault
    return undo
