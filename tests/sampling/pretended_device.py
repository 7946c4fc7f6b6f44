"""A device that is none: tensors that say they are elsewhere, and a record of what an accelerator
would have had to be waited for, or sent.

The numbers are a CPU's, so whole rounds run and their results can be compared. What is recorded is
what torch's operators for CUDA do, by their names and arguments: a stand-in for
`torch.cuda.set_sync_debug_mode` and a profiler where there is no such device, and no proof of what
kernels do inside.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("lazy", 0)
"""A device that torch knows by name and that needs no initialisation. No code asks for it."""

_WAITS = {
    "_local_scalar_dense",
    "_unique",
    "_unique2",
    "bincount",
    "equal",
    "is_nonzero",
    "item",
    "masked_select",
    "multinomial",
    "nonzero",
    "nonzero_numpy",
    "unique_consecutive",
    "unique_dim",
}
"""Operators whose result, or its size, the host has to know."""


class _There(torch.Tensor):
    """A tensor of the device; `here` are its numbers."""

    here: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, here: torch.Tensor) -> _There:
        there: _There = torch.Tensor._make_wrapper_subclass(
            cls,
            here.shape,
            strides=here.stride(),
            storage_offset=here.storage_offset(),
            dtype=here.dtype,
            device=DEVICE,
        )
        there.here = here
        return there

    @classmethod
    def __torch_dispatch__(cls, function: Any, *_: Any) -> Any:
        raise AssertionError(f"{function} outside of the device's record")


@dataclass
class Record:
    """What was done while it ran."""

    sent: list[int] = field(default_factory=list)
    """Bytes of each transfer to the device."""
    fetched: list[int] = field(default_factory=list)
    """Bytes of each transfer from it; each is a wait as well."""
    waits: list[str] = field(default_factory=list)
    """What else makes the host wait."""

    def clear(self) -> None:
        """Begin anew."""
        self.sent, self.fetched, self.waits = [], [], []


def put(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor on the device; not recorded."""
    return _There(tensor)


@contextlib.contextmanager
def pretended_device() -> Iterator[Record]:
    """Within it, tensors of `DEVICE` can be worked with, and what is done is recorded."""
    record = Record()
    with _Operators(record), _Indexing(record):
        yield record


class _Operators(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, record: Record) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._record = record

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        leaves = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        from_there = any(isinstance(leaf, _There) for leaf in leaves)
        to_there = from_there
        if (device := kwargs.get("device")) is not None:
            to_there = torch.device(device).type == DEVICE.type
            kwargs["device"] = torch.device("cpu")
        name = function.overloadpacket.__name__
        if name in ("_to_copy", "copy_"):
            self._transfer(name, args, kwargs, to_there=to_there)
        elif from_there:
            self._look(function, name, args, kwargs, leaves)
        args, kwargs = tree_map(_numbers, (args, kwargs))
        result = function(*args, **kwargs)
        return tree_map(_wrapped, result) if to_there else result

    def _transfer(self, name: str, args: Any, kwargs: Any, *, to_there: bool) -> None:
        if name == "copy_":
            to_there, source = isinstance(args[0], _There), args[1]
            without_wait = kwargs.get("non_blocking", len(args) > 2 and args[2])
        else:
            source, without_wait = args[0], kwargs.get("non_blocking", False)
        size = source.numel() * source.element_size()
        if to_there == isinstance(source, _There):
            return
        if not to_there:
            self._record.fetched.append(size)
            return
        self._record.sent.append(size)
        if not without_wait:
            self._record.waits.append(f"{name} to the device")

    def _look(self, function: Any, name: str, args: Any, kwargs: Any, leaves: Any) -> None:
        if name in _WAITS or (name == "repeat_interleave" and kwargs.get("output_size") is None):
            self._record.waits.append(name)
        elif name in ("index", "index_put", "index_put_", "_index_put_impl_"):
            masks = [one for one in args[1] if one is not None and one.dtype in _TRUTHS]
            self._record.waits += [f"{name} by a mask"] * bool(masks)
        if any(not isinstance(leaf, _There) for leaf in leaves):
            # Numbers of the host among a kernel's arguments; one alone would often be harmless.
            self._record.waits.append(f"{function} of both sides")


_TRUTHS = (torch.bool, torch.uint8)


class _Indexing(TorchFunctionMode):
    """What torch does about indices for CUDA before an operator is called."""

    def __init__(self, record: Record) -> None:
        super().__init__()
        self._record = record

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if function is torch.tensor and torch.device(kwargs.get("device") or "cpu") == DEVICE:
            here = function(*args, **{**kwargs, "device": torch.device("cpu")})
            return here.to(DEVICE)  # what it does beneath what can be seen of it
        if args and isinstance(args[0], _There):
            if function is torch.Tensor.tolist:
                return args[0].cpu().tolist()
            if function in (torch.Tensor.__getitem__, torch.Tensor.__setitem__):
                args = (args[0], self._index(args[1]), *args[2:])
            if function is torch.Tensor.__setitem__ and not isinstance(args[2], torch.Tensor):
                indices = args[1] if isinstance(args[1], tuple) else (args[1],)
                if any(isinstance(one, torch.Tensor) for one in indices):
                    self._record.waits.append("a number put at indices")
        return function(*args, **kwargs)

    def _index(self, index: Any) -> Any:
        if isinstance(index, tuple):
            return tuple(self._index(one) for one in index)
        if isinstance(index, list | np.ndarray) or (
            isinstance(index, torch.Tensor) and index.ndim and not isinstance(index, _There)
        ):
            self._record.waits.append("indices of the host")
            return put(torch.as_tensor(index))
        return index


def _numbers(leaf: Any) -> Any:
    return leaf.here if isinstance(leaf, _There) else leaf


def _wrapped(leaf: Any) -> Any:
    return _There(leaf) if isinstance(leaf, torch.Tensor) else leaf
