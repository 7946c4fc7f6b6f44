"""Options that are lists, pairs or nested lists: their messages and transformers' shapes for them.

Each `fill_` takes (name for errors, JSON value, empty message), each `dump_` the message. Knows
nothing of which field has which shape: that is `field_codecs`.
"""

from __future__ import annotations

from google.protobuf.message import Message
from outrider.v1 import generation_config_pb2 as pb

from outrider_contract.json_values import (
    ConfigValueError,
    as_sequence,
    read_float,
    read_ids,
    read_list,
    read_str,
    read_uint,
    shortest_float,
    shown,
)


def fill_id_list(name: str, value: object, part: Message) -> None:
    """A list of token ids."""
    assert isinstance(part, pb.TokenIds)
    part.ids.extend(read_ids(name, value))


def dump_id_list(part: Message) -> list[int]:
    """A list of token ids."""
    assert isinstance(part, pb.TokenIds)
    return list(part.ids)


def fill_id_or_list(name: str, value: object, part: Message) -> None:
    """One token id, or a list of them."""
    fill_id_list(name, value if isinstance(value, list | tuple) else [value], part)


def dump_id_or_list(part: Message) -> object:
    """One id as an int, none or several as a list."""
    ids = dump_id_list(part)
    return ids[0] if len(ids) == 1 else ids


def fill_id_lists(name: str, value: object, part: Message) -> None:
    """A list of token id lists."""
    assert isinstance(part, pb.TokenIdLists)
    for ids in read_list(name, value, read_ids):
        part.lists.add(ids=ids)


def dump_id_lists(part: Message) -> list[list[int]]:
    """A list of token id lists."""
    assert isinstance(part, pb.TokenIdLists)
    return [list(ids.ids) for ids in part.lists]


def fill_strings(name: str, value: object, part: Message) -> None:
    """One string, or a list of them."""
    assert isinstance(part, pb.StringList)
    items = [value] if isinstance(value, str) else value
    part.values.extend(read_list(name, items, read_str))


def dump_strings(part: Message) -> list[str]:
    """A list of strings."""
    assert isinstance(part, pb.StringList)
    return list(part.values)


def fill_layers(name: str, value: object, part: Message) -> None:
    """A list of layer indices."""
    assert isinstance(part, pb.LayerIndices)
    part.indices.extend(read_list(name, value, read_uint))


def dump_layers(part: Message) -> list[int]:
    """A list of layer indices."""
    assert isinstance(part, pb.LayerIndices)
    return list(part.indices)


def fill_decay(name: str, value: object, part: Message) -> None:
    """A pair of start index and decay factor."""
    assert isinstance(part, pb.ExponentialDecayLengthPenalty)
    start, factor = _pair(name, value, "(start index, decay factor)")
    part.start_index = read_uint(f"{name}[0]", start)
    part.decay_factor = read_float(f"{name}[1]", factor)


def dump_decay(part: Message) -> list[object]:
    """A pair of start index and decay factor."""
    assert isinstance(part, pb.ExponentialDecayLengthPenalty)
    return [part.start_index, shortest_float(part.decay_factor)]


def fill_sequence_bias(name: str, value: object, part: Message) -> None:
    """A dict of tuples to biases, or the list form `[[[ids], bias], ...]`."""
    assert isinstance(part, pb.SequenceBiasList)
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, tuple):
                raise ConfigValueError(
                    name,
                    f"has the key {shown(key)}, which is not a tuple of token ids; JSON turns "
                    "tuples into text, so write the list form [[[token ids], bias], ...]",
                )
        value = list(value.items())
    for i, entry in enumerate(as_sequence(name, value)):
        ids, bias = _pair(f"{name}[{i}]", entry, "([token ids], bias)")
        part.entries.add(
            token_ids=read_ids(f"{name}[{i}][0]", ids), bias=read_float(f"{name}[{i}][1]", bias)
        )


def dump_sequence_bias(part: Message) -> list[list[object]]:
    """The list form `[[[ids], bias], ...]`."""
    assert isinstance(part, pb.SequenceBiasList)
    return [[list(entry.token_ids), shortest_float(entry.bias)] for entry in part.entries]


def fill_phrases(name: str, value: object, part: Message) -> None:
    """A list of phrases; a phrase is a list of ids, or a list of such as alternatives."""
    assert isinstance(part, pb.ForcedPhrasesList)
    for i, phrase in enumerate(as_sequence(name, value)):
        where = f"{name}[{i}]"
        items = as_sequence(where, phrase)
        nested = any(isinstance(item, list | tuple) for item in items)
        alternatives = read_list(where, items, read_ids) if nested else [read_ids(where, items)]
        part.phrases.add(alternatives=[pb.TokenIds(ids=ids) for ids in alternatives])


def dump_phrases(part: Message) -> list[object]:
    """As `fill_phrases` takes it; a phrase of one alternative is a list of ids."""
    assert isinstance(part, pb.ForcedPhrasesList)
    phrases = [[list(ids.ids) for ids in phrase.alternatives] for phrase in part.phrases]
    return [phrase[0] if len(phrase) == 1 else phrase for phrase in phrases]


def _pair(name: str, value: object, form: str) -> tuple[object, object]:
    items = as_sequence(name, value)
    if len(items) != 2:
        raise ConfigValueError(name, f"must be a pair {form}, got {shown(value)}")
    return items[0], items[1]
