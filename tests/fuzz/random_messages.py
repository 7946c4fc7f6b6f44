"""Random protobuf messages: of the right types and wild values, or with damaged bytes."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any, TypeVar

from google.protobuf.descriptor import FieldDescriptor as Type
from google.protobuf.message import Message

Field = Any
"""A field's descriptor: which class it is of depends on the protobuf runtime."""

M = TypeVar("M", bound=Message)

_DEEPEST = 4
_TEXTS = [
    "", "a", "abc", "\0", "é", "日本語", "\U0001f600", " " * 40, "x" * 3000, "{}", "[", "(a|b)*",
    '{"type":"object"}', "start: /a+/", "NaN", "-1", "\u202e", "%s%n",
]  # fmt: skip
_FLOATS = [
    0.0,
    -0.0,
    1.0,
    -1.0,
    0.5,
    1e-300,
    1e300,
    1e-9,
    math.nan,
    math.inf,
    -math.inf,
]
_SMALL = [0, 1, 2, 3, 5, 7, 8, 16, 31, 63]


class MessageMaker:
    """Makes messages; the same seed makes the same ones."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)

    def message(self, kind: type[M], *, share: float = 0.3) -> M:
        """A message with about this share of its fields set."""
        made = kind()
        self._fill(made, share, 0)
        return made

    def changed(self, message: M) -> M:
        """A copy of a message with a few fields changed, anywhere inside."""
        copy = type(message)()
        copy.CopyFrom(message)
        for _ in range(self.chance.randint(1, 3)):
            self._change(copy, 0)
        return copy

    def damaged(self, data: bytes) -> bytes:
        """Bytes with some changed, cut, doubled or put elsewhere."""
        damaged = bytearray(data or b"\0")
        for _ in range(self.chance.randint(1, 4)):
            place = self.chance.randrange(len(damaged))
            match self.chance.randrange(5):
                case 0:
                    damaged[place] = self.chance.randrange(256)
                case 1:
                    damaged[place] ^= 1 << self.chance.randrange(8)
                case 2:
                    del damaged[place:]
                case 3:
                    damaged[place:place] = damaged[: self.chance.randrange(1, 20)]
                case _:
                    damaged[place:place] = self.chance.randbytes(self.chance.randrange(1, 9))
            damaged = damaged or bytearray(b"\xff")
        return bytes(damaged)

    def _fill(self, message: Message, share: float, depth: int) -> None:
        for field in message.DESCRIPTOR.fields:
            if self.chance.random() < share:
                self._set(message, field, share, depth)

    def _change(self, message: Message, depth: int) -> None:
        fields = message.DESCRIPTOR.fields
        if not fields:
            return
        field: Field = self.chance.choice(list(fields))
        inside = field.message_type is not None and not field.is_repeated
        if inside and depth < _DEEPEST and self.chance.random() < 0.8:
            self._change(getattr(message, field.name), depth + 1)
        elif self.chance.random() < 0.2:
            message.ClearField(field.name)
        else:
            self._set(message, field, 0.3, depth)

    def _set(self, message: Message, field: Field, share: float, depth: int) -> None:
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            return
        if field.is_repeated:
            values = getattr(message, field.name)
            for _ in range(self.chance.choice([0, 1, 1, 2, 3, 9, 60])):
                if field.message_type is not None:
                    if depth < _DEEPEST:
                        self._fill(values.add(), share, depth + 1)
                else:
                    values.append(self._scalar(field))
        elif field.message_type is not None:
            inner = getattr(message, field.name)
            inner.SetInParent()
            if depth < _DEEPEST:
                self._fill(inner, share, depth + 1)
        else:
            setattr(message, field.name, self._scalar(field))

    def _scalar(self, field: Field) -> Any:
        return _SCALARS[field.type](self, field)

    def _integer(self, bits: int, *, signed: bool) -> int:
        low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)
        if self.chance.random() < 0.7:
            return self.chance.choice(_SMALL)
        return self.chance.choice([low, high, self.chance.randint(low, high)])

    def _float(self, field: Field) -> float:
        if self.chance.random() < 0.5:
            return self.chance.choice(_FLOATS)
        return self.chance.uniform(-2, 2)

    def _enum(self, field: Field) -> int:
        assert field.enum_type is not None
        known: list[int] = [value.number for value in field.enum_type.values]
        return self.chance.choice([*known, 99, -1])

    def _text(self, field: Field) -> str:
        return self.chance.choice(_TEXTS)

    def _bytes(self, field: Field) -> bytes:
        return self.chance.randbytes(self.chance.choice([0, 1, 8, 400]))


def _integers(bits: int, *, signed: bool) -> Callable[[MessageMaker, Field], int]:
    return lambda maker, _: maker._integer(bits, signed=signed)


_SCALARS: dict[int, Callable[[MessageMaker, Field], Any]] = {
    Type.TYPE_INT32: _integers(32, signed=True),
    Type.TYPE_SINT32: _integers(32, signed=True),
    Type.TYPE_SFIXED32: _integers(32, signed=True),
    Type.TYPE_INT64: _integers(64, signed=True),
    Type.TYPE_SINT64: _integers(64, signed=True),
    Type.TYPE_SFIXED64: _integers(64, signed=True),
    Type.TYPE_UINT32: _integers(32, signed=False),
    Type.TYPE_FIXED32: _integers(32, signed=False),
    Type.TYPE_UINT64: _integers(64, signed=False),
    Type.TYPE_FIXED64: _integers(64, signed=False),
    Type.TYPE_FLOAT: MessageMaker._float,
    Type.TYPE_DOUBLE: MessageMaker._float,
    Type.TYPE_BOOL: lambda maker, _: maker.chance.random() < 0.5,
    Type.TYPE_ENUM: MessageMaker._enum,
    Type.TYPE_STRING: MessageMaker._text,
    Type.TYPE_BYTES: MessageMaker._bytes,
}
