"""From the parts of tensors in a stream to whole tensors. Knows nothing of calls."""

from __future__ import annotations

from collections.abc import Iterable

from outrider.v1 import tensors_pb2

from outrider_client._tensors import Tensor

_DTYPES = {
    tensors_pb2.TENSOR_DTYPE_FLOAT32: "float32",
    tensors_pb2.TENSOR_DTYPE_FLOAT64: "float64",
    tensors_pb2.TENSOR_DTYPE_FLOAT16: "float16",
    tensors_pb2.TENSOR_DTYPE_BFLOAT16: "bfloat16",
}


class TensorParts:
    """The tensors of one sequence, of one kind each, as they arrive."""

    def __init__(self) -> None:
        self._whole: dict[int, list[Tensor]] = {}
        self._pieces: list[bytes] = []

    def take(self, parts: Iterable[tensors_pb2.TensorPart]) -> None:
        """Takes the parts of one message.

        Raises:
            ValueError: They are not in order, or do not add up.
        """
        for part in parts:
            dtype = _DTYPES.get(part.dtype)
            if dtype is None:
                continue  # a number format of a newer server
            if part.offset != sum(map(len, self._pieces)):
                raise ValueError("the parts of a tensor are not in order")
            self._pieces.append(part.data)
            empty = Tensor(dtype, tuple(part.shape), b"")
            missing = empty.num_bytes - part.offset - len(part.data)
            if missing < 0:
                raise ValueError("the parts of a tensor are larger than their shape")
            if missing == 0:
                tensors = self._whole.setdefault(part.kind, [])
                if part.index != len(tensors):
                    raise ValueError(f"tensor {part.index} follows tensor {len(tensors) - 1}")
                tensors.append(Tensor(dtype, tuple(part.shape), b"".join(self._pieces)))
                self._pieces = []

    def of(self, kind: tensors_pb2.TensorKind.ValueType) -> list[Tensor]:
        """Those of a kind, in order."""
        return list(self._whole.get(kind, ()))
