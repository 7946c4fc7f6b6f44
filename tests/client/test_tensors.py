"""Tensors without numpy: every number format, and parts that must fit together."""

from __future__ import annotations

import math
import struct

import numpy as np
import pytest
from outrider.v1 import tensors_pb2 as pb
from outrider_client import Tensor
from outrider_client._tensor_assembly import TensorParts
from outrider_client._tensors import attentions, hidden_states

VALUES = [0.0, -1.5, 2.25, math.inf, -math.inf, 0.5]
PACKED = {
    "float32": struct.pack("<6f", *VALUES),
    "float64": struct.pack("<6d", *VALUES),
    "float16": struct.pack("<6e", *VALUES),
    "bfloat16": b"".join(struct.pack("<f", value)[2:] for value in VALUES),
}
NESTED = [VALUES[:3], VALUES[3:]]


@pytest.mark.parametrize("dtype", PACKED)
def test_the_numbers_come_out_as_lists(dtype: str) -> None:
    tensor = Tensor(dtype, (2, 3), PACKED[dtype])
    assert tensor.tolist() == NESTED
    assert tensor.num_bytes == len(PACKED[dtype])
    assert Tensor(dtype, (1, 2, 3), PACKED[dtype]).tolist() == [NESTED]


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_numpy_takes_a_tensor_as_it_is(dtype: str) -> None:
    array = np.asarray(Tensor(dtype, (2, 3), PACKED[dtype]))
    assert array.dtype == np.dtype(dtype)
    assert array.tolist() == NESTED


def test_a_view_has_the_shape_and_says_where_python_knows_no_such_number() -> None:
    view = Tensor("float32", (2, 3), PACKED["float32"]).memoryview()
    assert view.shape == (2, 3)
    assert view[1, 2] == 0.5
    with pytest.raises(TypeError, match="bfloat16"):
        Tensor("bfloat16", (2, 3), PACKED["bfloat16"]).memoryview()
    with pytest.raises(AttributeError, match="bfloat16"):
        _ = Tensor("bfloat16", (2, 3), PACKED["bfloat16"]).__array_interface__


def test_steps_are_made_of_positions_as_transformers_counts_them() -> None:
    def position(shape: tuple[int, ...], first: float) -> Tensor:
        values = [first + i for i in range(math.prod(shape))]
        return Tensor("float64", shape, struct.pack(f"<{len(values)}d", *values))

    states = hidden_states([position((2, 1), 10.0 * i) for i in range(4)], 3)
    assert [[layer.tolist() for layer in step] for step in states] == [
        [[[0.0], [10.0], [20.0]], [[1.0], [11.0], [21.0]]],
        [[[30.0]], [[31.0]]],
    ]
    assert states[-1][0].tolist() == [[30.0]]
    assert len(states[:1]) == 1
    weights = attentions([position((1, 2, i + 1), 10.0 * i) for i in range(3)], 2)
    assert [[layer.tolist() for layer in step] for step in weights] == [
        [[[[0.0, 0.0], [10.0, 11.0]], [[1.0, 0.0], [12.0, 13.0]]]],
        [[[[20.0, 21.0, 22.0]], [[23.0, 24.0, 25.0]]]],
    ]
    assert len(hidden_states([position((2, 1), 0.0)], 3)) == 0


def part(index: int, offset: int, data: bytes) -> pb.TensorPart:
    return pb.TensorPart(
        kind=pb.TENSOR_KIND_SCORES,
        index=index,
        dtype=pb.TENSOR_DTYPE_FLOAT32,
        shape=[2, 3],
        offset=offset,
        data=data,
    )


def test_parts_are_put_together_across_messages() -> None:
    whole = PACKED["float32"]
    parts = TensorParts()
    parts.take([part(0, 0, whole), part(1, 0, whole[:8])])
    assert len(parts.of(pb.TENSOR_KIND_SCORES)) == 1
    parts.take([part(1, 8, whole[8:])])
    assert [tensor.tolist() for tensor in parts.of(pb.TENSOR_KIND_SCORES)] == [NESTED, NESTED]
    assert parts.of(pb.TENSOR_KIND_LOGITS) == []


@pytest.mark.parametrize(
    "wrong",
    [
        [part(0, 8, b"12345678")],
        [part(1, 0, PACKED["float32"])],
        [part(0, 0, PACKED["float32"] + b"1234")],
        [part(0, 0, b"12345678"), part(0, 4, b"12345678")],
    ],
)
def test_parts_that_do_not_fit_together_are_an_error(wrong: list[pb.TensorPart]) -> None:
    with pytest.raises(ValueError, match="tensor"):
        TensorParts().take(wrong)
