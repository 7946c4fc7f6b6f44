"""Strict reading of single JSON values: an int is not a bool, a float is not an int.

Knows nothing of messages and of the fields the values belong to, but for their name in an error.
"""

from __future__ import annotations

import json
import math
import numbers
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from typing import TypeVar

_T = TypeVar("_T")

MAX_UINT32 = 2**32 - 1
MAX_UINT64 = 2**64 - 1


class ConfigValueError(ValueError):
    """A value that a generation option cannot have.

    Attributes:
        field: Name of the option, as in transformers.
        why: What is wrong and what would be right.
    """

    def __init__(self, field: str, why: str) -> None:
        super().__init__(f"{field}: {why}")
        self.field = field
        self.why = why


def read_bool(field: str, value: object) -> bool:
    """A bool and nothing else: 0 and 1 are ints."""
    if isinstance(value, bool):
        return value
    raise ConfigValueError(field, f"must be true or false, got {shown(value)}")


def read_uint(field: str, value: object, *, maximum: int = MAX_UINT32) -> int:
    """An int in [0, maximum]. Neither a bool nor a float such as 50.0."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise ConfigValueError(field, f"must be an integer, got {shown(value)}")
    number = int(value)
    if not 0 <= number <= maximum:
        raise ConfigValueError(field, f"must be in [0, {maximum}], got {shown(number)}")
    return number


def read_double(field: str, value: object) -> float:
    """A number as 64-bit float; an int is fine.

    NaN and infinities pass: what refuses them knows the field's range.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise ConfigValueError(field, f"must be a number, got {shown(value)}")
    try:
        return float(value)
    except OverflowError:
        raise ConfigValueError(field, f"is too large for a float, got {shown(value)}") from None


def read_float(field: str, value: object) -> float:
    """Like `read_double`, for a field that has 32 bits on the wire."""
    number = read_double(field, value)
    if math.isfinite(number) and _float32_bytes(number) is None:
        raise ConfigValueError(field, f"is too large for a 32-bit float, got {shown(value)}")
    return number


def read_str(field: str, value: object) -> str:
    """A string that has a UTF-8 form: no lone surrogates."""
    if not isinstance(value, str):
        raise ConfigValueError(field, f"must be a string, got {shown(value)}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ConfigValueError(field, f"is not valid Unicode: {shown(value)}") from None
    return value


def read_list(field: str, value: object, read: Callable[[str, object], _T]) -> list[_T]:
    """A list or tuple, each item read by `read` under the name `field[i]`."""
    return [read(f"{field}[{i}]", item) for i, item in enumerate(as_sequence(field, value))]


def read_ids(field: str, value: object) -> list[int]:
    """A list of token ids."""
    return read_list(field, value, read_uint)


def read_mapping(field: str, value: object) -> dict[str, object]:
    """A JSON object, or one of transformers' nested config objects, without its None entries."""
    to_dict = getattr(value, "to_dict", None)  # transformers' configs have it
    if callable(to_dict):
        value = to_dict()
    elif is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if not isinstance(value, Mapping):
        raise ConfigValueError(field, f"must be an object, got {shown(value)}")
    return {read_str(f"{field} key", key): item for key, item in value.items() if item is not None}


def read_json_text(field: str, value: object) -> str:
    """A JSON object as canonical JSON text."""
    mapping = read_mapping(field, value)
    try:
        return json.dumps(mapping, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ConfigValueError(field, f"has no JSON form: {error}") from None


def parse_json_text(field: str, text: str) -> dict[str, object]:
    """The object that `read_json_text` wrote."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigValueError(field, f"is not JSON text: {error}") from None
    if not isinstance(value, dict):
        raise ConfigValueError(field, f"must be a JSON object, got {shown(value)}")
    return value


def as_sequence(field: str, value: object) -> Sequence[object]:
    """`value` if it is a list or a tuple."""
    if isinstance(value, list | tuple):
        return value
    raise ConfigValueError(field, f"must be a list, got {shown(value)}")


def shortest_float(value: float) -> float:
    """The float with the fewest decimal digits that has the same 32-bit form.

    0.7 crosses the wire as 0.699999988079071; this gives 0.7 back. It matters for more than looks:
    transformers computes `1 - top_p` in 64 bits, where 0.1 and 0.10000000149 can keep different
    tokens.
    """
    if not math.isfinite(value):
        return value
    wire = _float32_bytes(value)
    for digits in range(6, 9):
        candidate = float(f"{value:.{digits}g}")
        if _float32_bytes(candidate) == wire:
            return candidate
    return float(f"{value:.9g}")


def _float32_bytes(value: float) -> bytes | None:
    try:
        return struct.pack("<f", value)
    except OverflowError:
        return None


def shown(value: object) -> str:
    """`value` as it may appear in an error: its JSON-like form, short."""
    try:
        text = repr(value)
    except ValueError:  # an int of more digits than Python is willing to print
        text = f"an integer of {value.bit_length()} bits" if isinstance(value, int) else "?"
    return text if len(text) <= 60 else f"{text[:57]}..."
