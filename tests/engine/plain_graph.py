"""Graphs on the CPU, in place of a GPU's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NoReturn
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_aten = torch.ops.aten
_WAITS = {
    _aten._local_scalar_dense, _aten.item, _aten.nonzero, _aten.masked_select, _aten.equal,
    _aten.is_nonzero, _aten.bincount, _aten._unique2, _aten.unique_dim, _aten.unique_consecutive,
}  # fmt: skip
"""What has the host wait for numbers of the device."""


class RerunGraph:
    """Runs the function again."""

    def record(self, run: Callable[[], None]) -> None:
        self._run = run
        run()

    def replay(self) -> None:
        self._run()


class TapeGraph:
    """Does again what operators did, on the same tensors: what a CUDA graph does.

    Whatever Python knew when it was recorded stays as it was, and as on a GPU nothing can be
    recorded that waits for numbers.
    """

    def __init__(self) -> None:
        self._tape: list[tuple[Any, Any, Any, list[torch.Tensor]]] = []

    def record(self, run: Callable[[], None]) -> None:
        run()
        # The one way to wait that passes by operators on the CPU.
        with _Recorder(self._tape), patch.object(torch.Tensor, "tolist", _refuse):
            run()

    def replay(self) -> None:
        for function, args, kwargs, results in self._tape:
            again = function(*args, **kwargs)
            for kept, new in zip(results, _tensors(again), strict=True):
                if kept is not new and kept.data_ptr() != new.data_ptr():
                    kept.copy_(new)


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, tape: list[tuple[Any, Any, Any, list[torch.Tensor]]]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._tape = tape

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        masks = func.overloadpacket in (_aten.index, _aten.index_put, _aten.index_put_) and any(
            one.dtype is torch.bool for one in _tensors(args[1])
        )
        repeats = func is _aten.repeat_interleave.Tensor
        if func.overloadpacket in _WAITS or masks or repeats:
            _refuse(func)
        kwargs = kwargs or {}
        results = func(*args, **kwargs)
        self._tape.append((func, args, kwargs, list(_tensors(results))))
        return results


def _refuse(what: object) -> NoReturn:
    raise RuntimeError("operation not permitted when stream is capturing\nat all")


def _tensors(values: Any) -> Iterator[torch.Tensor]:
    return (leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor))
