"""GenerationConfig in its two forms: transformers' JSON dict and the message of the contract.

Driven by the message's descriptors, so that a field added to the contract is here without a line of
code. A union type of transformers (`early_stopping`, `watermarking_config`, `dola_layers`) is one
name here, though a oneof of several fields on the wire. Knows nothing of which fields a server
honours and of what values make sense.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from google.protobuf.descriptor import FieldDescriptor
from outrider.v1.generation_config_pb2 import GenerationConfig

from outrider_contract.field_codecs import dump_field, read_field, union_member
from outrider_contract.json_values import ConfigValueError, shortest_float

__all__ = [
    "FIELD_NAMES",
    "GLOBAL_DEFAULTS",
    "ConfigValueError",
    "clear",
    "copy_field",
    "from_json_dict",
    "is_set",
    "shortest_float",
    "to_json_dict",
]

# What transformers writes beside the options; not options themselves.
_METADATA = frozenset({"_from_model_config", "_commit_hash"})


def _members_by_name() -> dict[str, tuple[FieldDescriptor, ...]]:
    members: dict[str, tuple[FieldDescriptor, ...]] = {}
    for field in GenerationConfig.DESCRIPTOR.fields:
        if field.name == "clear_fields":
            continue
        # An `optional` scalar is the only member of a oneof of its own; a union has several.
        union = field.containing_oneof
        name = union.name if union is not None and len(union.fields) > 1 else field.name
        members[name] = (*members.get(name, ()), field)
    return members


_MEMBERS = _members_by_name()

FIELD_NAMES: tuple[str, ...] = tuple(_MEMBERS)
"""All options by transformers' names, in the order of the contract; a union type is one name."""

GLOBAL_DEFAULTS: Mapping[str, object] = MappingProxyType(
    {
        "max_length": 20,
        "min_length": 0,
        "early_stopping": False,
        "do_sample": False,
        "num_beams": 1,
        "use_cache": True,
        "temperature": 1.0,
        "top_k": 50,
        "top_p": 1.0,
        "typical_p": 1.0,
        "epsilon_cutoff": 0.0,
        "eta_cutoff": 0.0,
        "repetition_penalty": 1.0,
        "encoder_repetition_penalty": 1.0,
        "length_penalty": 1.0,
        "no_repeat_ngram_size": 0,
        "encoder_no_repeat_ngram_size": 0,
        "remove_invalid_values": False,
        "num_return_sequences": 1,
        "output_scores": False,
        "return_dict_in_generate": False,
        "num_assistant_tokens": 20,
        "num_assistant_tokens_schedule": "constant",
        "assistant_confidence_threshold": 0.4,
        "assistant_lookbehind": 10,
        "target_lookbehind": 10,
        "num_beam_groups": 1,
        "diversity_penalty": 0.0,
    }
)
"""What transformers' `generate()` fills in where neither request nor model says anything (5.23,
`GenerationConfig._get_default_generation_params`), without the entries that are None. `max_length`
counts output only when nobody set it: transformers then adds the length of the prompt."""


def from_json_dict(
    values: Mapping[str, object], *, ignore_unknown: bool = False
) -> GenerationConfig:
    """Builds the message from transformers' JSON form.

    Args:
        values: Options by transformers' names. None means unset, as if absent. Nested config
            objects of transformers are taken too, and `sequence_bias` with tuples as keys.
        ignore_unknown: Skip names that are not in the contract instead of refusing them.

    Raises:
        ConfigValueError: A name is unknown, or a value is not of its option's type. Ranges are not
            looked at, but for what has no form on the wire: negative integers and integers of more
            than 32 bits.
    """
    message = GenerationConfig()
    for name, value in values.items():
        if value is None or name in _METADATA:
            continue
        if name not in _MEMBERS:
            if ignore_unknown:
                continue
            raise ConfigValueError(str(name), "is not an option of GenerationConfig")
        read_field(message, _member_for(name, value), value, name=name)
    return message


def to_json_dict(message: GenerationConfig) -> dict[str, object]:
    """The set options in transformers' JSON shapes; `from_json_dict` gives the same message back.

    `sequence_bias` comes in list form, a single end-of-sequence token as an int, several as a list.
    A 32-bit float comes as the shortest decimal number that means it: 0.7, not 0.699999988079071.
    `clear_fields` is not an option and does not appear.

    Raises:
        ConfigValueError: A field that holds JSON text holds something else.
    """
    return {
        name: dump_field(message, member, name=name)
        for name in FIELD_NAMES
        if (member := _set_member(message, name)) is not None
    }


def is_set(message: GenerationConfig, name: str) -> bool:
    """Whether the option `name` has a value, its default included.

    Raises:
        ConfigValueError: There is no such option.
    """
    return _set_member(message, name) is not None


def clear(message: GenerationConfig, name: str) -> None:
    """Unsets the option `name`.

    Raises:
        ConfigValueError: There is no such option.
    """
    for member in _members(name):
        message.ClearField(member.name)  # type: ignore[arg-type]  # any field name


def copy_field(source: GenerationConfig, destination: GenerationConfig, name: str) -> None:
    """Makes the option `name` of `destination` what it is in `source`, unset included.

    Raises:
        ConfigValueError: There is no such option.
    """
    clear(destination, name)
    member = _set_member(source, name)
    if member is None:
        return
    value = getattr(source, member.name)
    if member.message_type is None:
        setattr(destination, member.name, value)
    else:
        getattr(destination, member.name).CopyFrom(value)


def _members(name: str) -> tuple[FieldDescriptor, ...]:
    if name not in _MEMBERS:
        raise ConfigValueError(name, "is not an option of GenerationConfig")
    return _MEMBERS[name]


def _member_for(name: str, value: object) -> FieldDescriptor:
    members = _MEMBERS[name]
    if len(members) == 1:
        return members[0]
    wanted = union_member(name, value)
    return next(member for member in members if member.name == wanted)


def _set_member(message: GenerationConfig, name: str) -> FieldDescriptor | None:
    for member in _members(name):
        if message.HasField(member.name):  # type: ignore[arg-type]  # any field name
            return member
    return None
