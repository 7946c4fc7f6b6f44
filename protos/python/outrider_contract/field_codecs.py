"""How each kind of field goes from transformers' JSON value into the message and back.

The message's descriptors say which fields there are; a table per message type and a small one of
fields that differ say how. Knows nothing of defaults, merging, or which values make sense together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from outrider_contract import message_shapes as shapes
from outrider_contract.json_values import (
    MAX_UINT64,
    ConfigValueError,
    parse_json_text,
    read_bool,
    read_double,
    read_float,
    read_json_text,
    read_list,
    read_mapping,
    read_str,
    read_uint,
    shortest_float,
    shown,
)


class ScalarCodec(NamedTuple):
    """A field whose wire value is a Python scalar."""

    read: Callable[[str, object], object]
    """(name for errors, JSON value) to wire value."""
    dump: Callable[[str, object], object] = lambda _, value: value
    """(name for errors, wire value) to JSON value."""


class MessageCodec(NamedTuple):
    """A field whose wire value is a message."""

    fill: Callable[[str, object, Message], None]
    """Fills an empty message from (name for errors, JSON value)."""
    dump: Callable[[Message], object]
    """Message to JSON value."""


def read_field(message: Message, descriptor: FieldDescriptor, value: object, *, name: str) -> None:
    """Sets one field of `message` from a JSON value; `name` is what errors call it."""
    codec = codec_of(descriptor)
    if isinstance(codec, ScalarCodec):
        setattr(message, descriptor.name, codec.read(name, value))
        return
    part: Message = getattr(message, descriptor.name)
    part.SetInParent()  # an empty list is not an absent one
    codec.fill(name, value, part)


def dump_field(message: Message, descriptor: FieldDescriptor, *, name: str) -> object:
    """The JSON value of one set field of `message`."""
    codec = codec_of(descriptor)
    value = getattr(message, descriptor.name)
    return codec.dump(name, value) if isinstance(codec, ScalarCodec) else codec.dump(value)


def codec_of(descriptor: FieldDescriptor) -> ScalarCodec | MessageCodec:
    """The codec of a field: its own if it has one, else that of its type."""
    if descriptor.full_name in _BY_FIELD:
        return _BY_FIELD[descriptor.full_name]
    if descriptor.message_type is not None:
        return _BY_MESSAGE[descriptor.message_type.full_name]
    return _BY_TYPE[descriptor.type]


def union_member(name: str, value: object) -> str:
    """The oneof member that takes a JSON value of the union called `name`."""
    return _UNIONS[name](name, value)


def _early_stopping(name: str, value: object) -> str:
    if isinstance(value, bool):
        return "early_stopping_enabled"
    if isinstance(value, str):
        return "early_stopping_mode"
    raise ConfigValueError(name, f'must be true, false or "never", got {shown(value)}')


def _watermarking(name: str, value: object) -> str:
    # What only SynthID has, and cannot do without.
    if read_mapping(name, value).keys() & {"ngram_len", "keys"}:
        return "synthid_watermarking_config"
    return "greenlist_watermarking_config"


def _dola_layers(_: str, value: object) -> str:
    return "dola_layers_mode" if isinstance(value, str) else "dola_layers_indices"


def _fill_object(name: str, value: object, part: Message) -> None:
    fields: Mapping[str, Any] = part.DESCRIPTOR.fields_by_name
    for key, item in read_mapping(name, value).items():
        if key not in fields:
            raise ConfigValueError(f"{name}.{key}", f"is unknown; {name} has {', '.join(fields)}")
        if not fields[key].has_presence:  # repeated
            getattr(part, key).extend(read_list(f"{name}.{key}", item, _read_uint64))
        else:
            read_field(part, fields[key], item, name=f"{name}.{key}")


def _dump_object(part: Message) -> dict[str, object]:
    return {
        field.name: dump_field(part, field, name=field.name) if field.has_presence else list(value)
        for field, value in part.ListFields()
    }


def _read_uint64(name: str, value: object) -> int:
    return read_uint(name, value, maximum=MAX_UINT64)


def _read_constraints(name: str, value: object) -> str:
    # Python objects have no JSON form; the text is only there to be refused by name.
    text = value if isinstance(value, str) else str(value)
    return read_str(name, text)


def _parse_json_text(name: str, value: object) -> object:
    return parse_json_text(name, read_str(name, value))


def _shortest(name: str, value: object) -> object:
    return shortest_float(read_double(name, value))


_UNIONS = {
    "early_stopping": _early_stopping,
    "watermarking_config": _watermarking,
    "dola_layers": _dola_layers,
}

_BY_TYPE = {
    FieldDescriptor.TYPE_BOOL: ScalarCodec(read_bool),
    FieldDescriptor.TYPE_UINT32: ScalarCodec(read_uint),
    FieldDescriptor.TYPE_UINT64: ScalarCodec(_read_uint64),
    FieldDescriptor.TYPE_FLOAT: ScalarCodec(read_float, _shortest),
    FieldDescriptor.TYPE_DOUBLE: ScalarCodec(read_double),
    FieldDescriptor.TYPE_STRING: ScalarCodec(read_str),
}

_OBJECT = MessageCodec(_fill_object, _dump_object)

_BY_MESSAGE = {
    "outrider.v1.TokenIds": MessageCodec(shapes.fill_id_list, shapes.dump_id_list),
    "outrider.v1.TokenIdLists": MessageCodec(shapes.fill_id_lists, shapes.dump_id_lists),
    "outrider.v1.StringList": MessageCodec(shapes.fill_strings, shapes.dump_strings),
    "outrider.v1.LayerIndices": MessageCodec(shapes.fill_layers, shapes.dump_layers),
    "outrider.v1.ExponentialDecayLengthPenalty": MessageCodec(shapes.fill_decay, shapes.dump_decay),
    "outrider.v1.SequenceBiasList": MessageCodec(
        shapes.fill_sequence_bias, shapes.dump_sequence_bias
    ),
    "outrider.v1.ForcedPhrasesList": MessageCodec(shapes.fill_phrases, shapes.dump_phrases),
    "outrider.v1.WatermarkingConfig": _OBJECT,
    "outrider.v1.SynthIdTextWatermarkingConfig": _OBJECT,
    "outrider.v1.CompileConfig": _OBJECT,
}

_ID_OR_LIST = MessageCodec(shapes.fill_id_or_list, shapes.dump_id_or_list)
_JSON_TEXT = ScalarCodec(read_json_text, _parse_json_text)

_BY_FIELD: dict[str, ScalarCodec | MessageCodec] = {
    "outrider.v1.GenerationConfig.eos_token_id": _ID_OR_LIST,
    "outrider.v1.GenerationConfig.forced_eos_token_id": _ID_OR_LIST,
    "outrider.v1.GenerationConfig.decoder_start_token_id": _ID_OR_LIST,
    "outrider.v1.GenerationConfig.cache_config": _JSON_TEXT,
    "outrider.v1.GenerationConfig.continuous_batching_config": _JSON_TEXT,
    "outrider.v1.GenerationConfig.constraints": ScalarCodec(_read_constraints),
}
