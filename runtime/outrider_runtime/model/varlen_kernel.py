"""Paged attention through torch's `varlen_attn`, where an implementation of it reads block tables.

Features are asked for by signature. The kernels that torch itself brings read no block tables;
those of FlashAttention do, on the GPUs they were made for, once torch was told to use them.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable

import torch
from torch.nn.functional import pad

from outrider_runtime.model.attention_weights import ScoreRule
from outrider_runtime.model.kv_storage import LayerKV
from outrider_runtime.model.paged_attention import KernelUnavailable, PagedKernel, PagedKeys

Varlen = Callable[..., torch.Tensor]
"""What `torch.nn.attention.varlen.varlen_attn` takes and returns, pages included."""

_NEEDED = {"scale", "window_size", "enable_gqa", "seqused_k", "block_table", "num_splits"}
_DTYPES = (torch.bfloat16, torch.float16)
_IMPLEMENTATIONS = {9: "FA3", 10: "FA4"}
"""By the major number of a GPU's compute capability, what reads block tables there."""

_FEW_ROWS = 256
"""Kernels choose other tiles for few rows, for a single one above all. They are told of at least so
many, more than any such rule looks at: the choice, and with it a row's bits, is then always one."""


class VarlenAttention:
    """See `PagedAttention`.

    Args:
        varlen: the kernel.
    """

    name = "varlen"

    def __init__(self, varlen: Varlen) -> None:
        self._varlen = varlen

    def fits(self, kv: LayerKV, rule: ScoreRule) -> bool:
        """See `PagedAttention`."""
        return rule.softcap is None and rule.sinks is None and kv.key_dim == kv.value_dim

    def attend(
        self, query: torch.Tensor, kv: LayerKV, keys: PagedKeys, rule: ScoreRule
    ) -> torch.Tensor:
        """See `PagedAttention`."""
        # A slot's row holds the keys of all heads, then the values.
        stored = kv.rows.view(-1, keys.block_size, 2, kv.num_heads, kv.key_dim)
        out = self._varlen(
            query[0].transpose(0, 1),
            stored[:, :, 0],
            stored[:, :, 1],
            keys.row_starts,
            None,  # where keys begin, the tables say
            max(keys.most_rows, _FEW_ROWS),
            kv.rows.shape[0],  # of any sequence: one bound for all batches, see `_FEW_ROWS`
            scale=rule.scaling,
            # Of the kernel's window the row itself is no part. Rows and keys are aligned at the
            # end of a sequence, so the last row sees up to the last key.
            window_size=(-1 if rule.window is None else rule.window - 1, 0),
            enable_gqa=query.shape[1] > kv.num_heads,
            seqused_k=keys.lengths,
            block_table=_wide_enough(keys, rule.window),
            # Split keys are summed up in parts whose number follows from the whole batch: a row's
            # bits would depend on its company, and drafts could change a text.
            num_splits=1,
        )
        return out[None]


def _wide_enough(keys: PagedKeys, window: int | None) -> torch.Tensor:
    """Block tables that reach beyond the window.

    FlashAttention 3 leaves a window alone that is wider than all tables, and chooses its tiles by
    that: a row's bits would depend on how long the longest text of its batch is.
    """
    missing = 0 if window is None else window // keys.block_size + 1 - keys.tables.shape[1]
    return pad(keys.tables, (0, missing)) if missing > 0 else keys.tables


def load(*, device: torch.device, dtype: torch.dtype) -> PagedKernel:
    """Returns the kernel for a model on this GPU, of this precision.

    Raises:
        KernelUnavailable: there is none.
    """
    if dtype not in _DTYPES:
        raise KernelUnavailable("it is for bfloat16 and float16 (--dtype)")
    return PagedKernel(VarlenAttention(_attention()), _activate(device))


def reads_pages(varlen: Varlen) -> bool:
    """Returns whether a function has all parameters that paged attention needs."""
    return set(inspect.signature(varlen).parameters) >= _NEEDED


def _attention() -> Varlen:
    try:
        varlen: Varlen = importlib.import_module("torch.nn.attention.varlen").varlen_attn
    except (ImportError, AttributeError):
        raise KernelUnavailable("this torch has no attention for ragged batches") from None
    if not reads_pages(varlen):
        raise KernelUnavailable("this torch's attention for ragged batches reads no block tables")
    return varlen


def _activate(device: torch.device) -> Callable[[], None]:
    """Makes torch use an implementation that reads block tables; returns what undoes it."""
    choice = importlib.import_module("torch.nn.attention")
    try:
        activate = choice.activate_flash_attention_impl
        undo: Callable[[], None] = choice.restore_flash_attention_impl
        if choice.current_flash_attention_impl() is not None:
            return lambda: None  # the operator's own choice: the proof tells what it is worth
    except AttributeError:
        raise KernelUnavailable("this torch takes no other implementation of attention") from None
    major, minor = torch.cuda.get_device_capability(device)
    name = _IMPLEMENTATIONS.get(major)
    if name is None:
        raise KernelUnavailable(f"no implementation reads block tables on compute {major}.{minor}")
    try:
        activate(name)
    except Exception as fault:  # packages of others, which raise what they like
        raise KernelUnavailable(f"{name} cannot be had: {fault}".splitlines()[0]) from fault
    return undo
