"""Tensors of a generated sequence, as a caller sees them. Knows nothing of calls, nor of numpy."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, overload

_SIZES = {"float32": 4, "float64": 8, "float16": 2, "bfloat16": 2}
_FORMATS = {"float32": "f", "float64": "d"}
_NUMPY_TYPES = {"float32": "<f4", "float64": "<f8", "float16": "<f2"}


@dataclass(frozen=True, slots=True)
class Tensor:
    """Numbers in rows.

    `numpy.asarray(tensor)` shares its memory (not for bfloat16, which numpy does not know);
    `torch.frombuffer(bytearray(tensor.data), dtype=torch.bfloat16).view(tensor.shape)` makes any of
    them one of torch's.
    """

    dtype: str
    """float32, float64, float16 or bfloat16."""

    shape: tuple[int, ...]
    """Sizes, outermost first."""

    data: bytes
    """The numbers, row-major, little-endian."""

    def memoryview(self) -> memoryview:
        """A view of the numbers in this shape.

        Raises:
            TypeError: Python has no such number: float16 or bfloat16.
        """
        if self.dtype not in _FORMATS:
            raise TypeError(f"memoryview knows no {self.dtype}; see tolist() and data")
        shaped: Any = memoryview(self.data).cast  # typeshed knows shapes of lists of literals only
        view: memoryview = shaped(_FORMATS[self.dtype], self.shape)
        return view

    def tolist(self) -> Any:
        """The numbers as nested lists of floats."""
        return _nested(self._flat(), self.shape)

    @property
    def __array_interface__(self) -> dict[str, object]:
        """What `numpy.asarray` asks for.

        Raises:
            AttributeError: numpy has no such number: bfloat16.
        """
        if self.dtype not in _NUMPY_TYPES:
            raise AttributeError(f"numpy knows no {self.dtype}; see tolist() and data")
        return {
            "shape": self.shape,
            "typestr": _NUMPY_TYPES[self.dtype],
            "data": self.data,
            "version": 3,
        }

    def _flat(self) -> Sequence[float]:
        count = math.prod(self.shape)
        if self.dtype == "bfloat16":  # the upper half of a float32
            halves = struct.unpack(f"<{count}H", self.data)
            return struct.unpack(
                f"<{count}f", struct.pack(f"<{count}I", *(h << 16 for h in halves))
            )
        code = {"float32": "f", "float64": "d", "float16": "e"}[self.dtype]
        return struct.unpack(f"<{count}{code}", self.data)

    @property
    def num_bytes(self) -> int:
        """Bytes that numbers of this shape take."""
        return self._row_size(0)

    def _row_size(self, axes: int) -> int:
        """Bytes of what the first `axes` indices leave."""
        return math.prod(self.shape[axes:]) * _SIZES[self.dtype]


class Steps(Sequence[tuple[Tensor, ...]]):
    """For each generated token a tuple of tensors, one a layer, made when it is looked at."""

    def __init__(self, count: int, make: Callable[[int], tuple[Tensor, ...]]) -> None:
        self._count = count
        self._make = make

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> tuple[Tensor, ...]: ...
    @overload
    def __getitem__(self, index: slice) -> list[tuple[Tensor, ...]]: ...
    def __getitem__(self, index: int | slice) -> tuple[Tensor, ...] | list[tuple[Tensor, ...]]:
        steps = range(self._count)[index]
        return self._make(steps) if isinstance(steps, int) else [self._make(step) for step in steps]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Steps) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]  # as a list


def hidden_states(positions: Sequence[Tensor], num_prompt_tokens: int) -> Steps:
    """As transformers' `hidden_states`, from [layers + 1, hidden size] of each position.

    Step 0 is the prompt, each further step one token; the tensors are [positions, hidden size].
    """

    def step(index: int) -> tuple[Tensor, ...]:
        own = _positions_of(index, positions, num_prompt_tokens)
        layers, width = own[0].shape
        size = own[0]._row_size(1)
        return tuple(
            Tensor(
                own[0].dtype,
                (len(own), width),
                b"".join(each.data[layer * size : (layer + 1) * size] for each in own),
            )
            for layer in range(layers)
        )

    return Steps(_num_steps(positions, num_prompt_tokens), step)


def attentions(positions: Sequence[Tensor], num_prompt_tokens: int) -> Steps:
    """As transformers' `attentions`, from [layers, heads, position + 1] of each position.

    Steps as in `hidden_states`; the tensors are [heads, positions, keys].
    """

    def step(index: int) -> tuple[Tensor, ...]:
        own = _positions_of(index, positions, num_prompt_tokens)
        layers, heads, keys = own[-1].shape
        return tuple(
            Tensor(
                own[0].dtype,
                (heads, len(own), keys),
                b"".join(
                    _padded_row(each, layer * heads + head, own[-1]._row_size(2))
                    for head in range(heads)
                    for each in own
                ),
            )
            for layer in range(layers)
        )

    return Steps(_num_steps(positions, num_prompt_tokens), step)


def _padded_row(weights: Tensor, row: int, size: int) -> bytes:
    own = weights._row_size(2)
    return weights.data[row * own : (row + 1) * own].ljust(size, b"\0")


def _num_steps(positions: Sequence[Tensor], num_prompt_tokens: int) -> int:
    return max(0, len(positions) - num_prompt_tokens + 1)


def _positions_of(
    step: int, positions: Sequence[Tensor], num_prompt_tokens: int
) -> Sequence[Tensor]:
    if step == 0:
        return positions[:num_prompt_tokens]
    position = num_prompt_tokens - 1 + step
    return positions[position : position + 1]


def _nested(flat: Sequence[float], shape: tuple[int, ...]) -> Any:
    if len(shape) <= 1:
        return list(flat) if shape else flat[0]
    size = math.prod(shape[1:])
    return [_nested(flat[i * size : (i + 1) * size], shape[1:]) for i in range(shape[0])]
