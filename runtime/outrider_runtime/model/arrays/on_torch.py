"""`Arrays` in torch, for any device. The operations are documented there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from outrider_runtime.model.arrays.parcel import Packed, Parcel, T
from outrider_runtime.model.arrays.protocol import Array, Arrays

_DTYPES = {
    np.dtype(np.int32): torch.int32,
    np.dtype(np.int64): torch.int64,
    np.dtype(np.float32): torch.float32,
    np.dtype(np.float64): torch.float64,
    np.dtype(np.uint8): torch.uint8,
}
"""What travels, beside truth values."""


class _Torch:
    at_once = 1 << 25
    where: Callable[..., Array] = staticmethod(torch.where)
    exp: Callable[[Array], Array] = staticmethod(torch.exp)
    log: Callable[[Array], Array] = staticmethod(torch.log)
    log1p: Callable[[Array], Array] = staticmethod(torch.log1p)

    def __init__(self, device: torch.device) -> None:
        self.device = device
        # From and to other memory, a copy makes the host wait for all that the device has to do.
        self._pinned = device.type == "cuda"

    def send(self, value: T) -> T:
        parcel = Parcel(value)
        if not parcel:
            return value
        block = torch.empty(parcel.num_bytes, dtype=torch.uint8, pin_memory=self._pinned)
        parcel.write(block.numpy())
        # The block may go as soon as it is sent: torch keeps pinned memory until it was read.
        there = block.to(self.device, non_blocking=True)
        sent: T = parcel.unpacked(lambda packed: self._unpack(there, packed))
        return sent

    def _unpack(self, block: torch.Tensor, packed: Packed) -> torch.Tensor:
        part = block[packed.start : packed.stop]
        if packed.dtype != np.bool_:
            return part.view(_DTYPES[packed.dtype]).view(packed.shape)
        *rows, length = packed.shape
        shifts = torch.arange(8, dtype=torch.uint8, device=self.device)
        bits = (part.view(*rows, -(-length // 8), 1) >> shifts) & 1
        return bits.flatten(-2)[..., :length].bool()

    def integers(self, values: Any) -> Array:
        return self.send(np.asarray(values, dtype=np.int64))

    def to_floats(self, x: Array) -> Array:
        return x.float()

    def fill_rows(self, x: Array, rows: Array, value: float) -> None:
        x.index_fill_(0, rows, value)

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

    def fetch(self, *arrays: Array) -> tuple[npt.NDArray[Any], ...]:
        # Float64 holds every token id.
        told = self._to_host(torch.cat([one.reshape(-1).double() for one in arrays]))
        ends = np.cumsum([one.numel() for one in arrays])[:-1]
        return tuple(
            (part if one.is_floating_point() else part.astype(np.int64)).reshape(one.shape)
            for one, part in zip(arrays, np.split(told, ends), strict=True)
        )

    def lists(self, *arrays: Array) -> tuple[list[Any], ...]:
        return tuple(one.tolist() for one in self.fetch(*arrays))

    def _to_host(self, x: torch.Tensor) -> npt.NDArray[np.float64]:
        """The one wait for the device."""
        if not self._pinned:
            return x.cpu().numpy()
        here = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
        here.copy_(x, non_blocking=True)
        torch.cuda.current_stream(self.device).synchronize()
        return here.numpy()

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


@lru_cache
def on_device(device: torch.device) -> Arrays:
    """The operations on tensors of `device`; the same object for the same device."""
    return _Torch(device)
