"""`Arrays` in torch, for any device. The operations are documented there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from outrider_runtime.model.arrays.protocol import Array, Arrays


class _Torch:
    at_once = 1 << 25
    where: Callable[..., Array] = staticmethod(torch.where)
    exp: Callable[[Array], Array] = staticmethod(torch.exp)
    log: Callable[[Array], Array] = staticmethod(torch.log)
    log1p: Callable[[Array], Array] = staticmethod(torch.log1p)

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def integers(self, values: Any) -> Array:
        return torch.from_numpy(np.asarray(values, dtype=np.int64)).to(self.device)

    def floats(self, values: Any) -> Array:
        return torch.from_numpy(np.asarray(values, dtype=np.float32)).to(self.device)

    def bytes(self, values: Any) -> Array:
        return torch.from_numpy(np.asarray(values, dtype=np.uint8)).to(self.device)

    def booleans(self, values: npt.NDArray[np.bool_]) -> Array:
        return torch.from_numpy(values).to(self.device)

    def make_finite(self, x: Array) -> None:
        torch.nan_to_num_(x)

    def copy(self, x: Array) -> Array:
        return x.clone(memory_format=torch.contiguous_format)

    def pick(self, x: Array, indices: Array) -> Array:
        return x.gather(-1, indices[:, None])[:, 0]

    def softmax(self, x: Array) -> Array:
        return x.softmax(dim=-1)

    def log_softmax(self, x: Array) -> Array:
        return x.log_softmax(dim=-1)

    def log_prob(self, x: Array, indices: Array, tops: Array, *, padded: bool) -> Array:
        return self.pick(x.log_softmax(dim=-1), indices)

    def lists(self, integers: Array, *floats: Array) -> tuple[list[Any], ...]:
        # Float64 holds every token id.
        first, *others = torch.stack([one.double() for one in (integers, *floats)]).tolist()
        return [int(value) for value in first], *others

    def sort(self, x: Array) -> Array:
        return x.sort(dim=-1).values

    def argsort(self, x: Array, *, stable: bool) -> Array:
        return x.argsort(dim=-1, stable=stable)

    def take(self, x: Array, indices: Array) -> Array:
        return x.gather(-1, indices)

    def count(self, condition: Array) -> Array:
        return condition.sum(dim=-1, keepdim=True)

    def perhaps_any(self, condition: Array) -> bool:
        return True

    def to_integers(self, x: Array) -> Array:
        return x.long()

    def max(self, x: Array) -> Array:
        return x.amax(dim=-1, keepdim=True)

    def argmax(self, x: Array) -> Array:
        return x.argmax(dim=-1)

    def sum(self, x: Array) -> Array:
        return self.cumsum(x)[:, -1:]

    def cumsum(self, x: Array) -> Array:
        return x.cumsum(dim=-1, dtype=torch.float64).to(x.dtype)

    def running_count(self, condition: Array) -> Array:
        return condition.cumsum(dim=-1)

    def doubles(self, x: Array) -> Array:
        return x.double()

    def arange(self, stop: int) -> Array:
        return torch.arange(stop, device=self.device)

    def swap(self, x: Array) -> Array:
        return x.flip(0)

    def pairs(self, first: Array, second: Array) -> Array:
        return torch.stack((first, second.expand_as(first)))

    def interleave(self, columns: Sequence[Array]) -> Array:
        return torch.stack(tuple(columns), dim=-1).flatten(1)

    def concatenate(self, pieces: Sequence[Array]) -> Array:
        return torch.cat(tuple(pieces), dim=-1)


def on_device(device: torch.device) -> Arrays:
    """The operations on tensors of `device`."""
    return _Torch(device)
