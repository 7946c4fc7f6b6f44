"""The form that a request's text must have.

Mirrors `StructuredOutput` of `structured_output.proto` in Python's own types. Whether a schema or
grammar makes sense is the server's to judge.
"""

from __future__ import annotations

import json
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from outrider.v1 import structured_output_pb2
from outrider_contract.json_values import MAX_UINT32

from outrider_client._errors import InvalidRequestError


@dataclass(frozen=True, slots=True, kw_only=True)
class StructuredOutput:
    """What every completed text looks like. Exactly one field is given.

    Raises:
        InvalidRequestError: None or several are given, or one is of the wrong type.
    """

    json_schema: str | Mapping[str, Any] | None = None
    """A JSON Schema, as JSON text or as the object it describes: the text is JSON that fits it."""

    regex: str | None = None
    """A regular expression, in Rust's syntax, that matches the whole text."""

    grammar: str | None = None
    """A context-free grammar in llguidance's Lark notation."""

    choices: Sequence[str] | None = None
    """The text is one of these."""

    token_choices: Sequence[Sequence[int]] | None = None
    """The generated tokens are one of these lists."""

    def __post_init__(self) -> None:
        given = [field.name for field in fields(self) if getattr(self, field.name) is not None]
        if len(given) != 1:
            names = ", ".join(field.name for field in fields(self))
            said = " and ".join(given) or "none"
            raise InvalidRequestError(
                f"structured_output: give exactly one of {names}, got {said}",
                field="structured_output",
            )
        (name,) = given
        value = getattr(self, name)
        if name == "choices":
            if isinstance(value, str) or not isinstance(value, Sequence):
                raise _invalid(name, "must be a sequence of texts", value)
            object.__setattr__(self, name, tuple(value))  # as frozen as the rest
            if not value or not all(isinstance(one, str) and one for one in value):
                raise _invalid(name, "must hold at least one text and no empty one", value)
        elif name == "token_choices":
            object.__setattr__(self, name, _token_lists(value))
        elif not isinstance(value, str) and not (
            name == "json_schema" and isinstance(value, Mapping)
        ):
            raise _invalid(name, "must be text", value)
        try:
            self.to_message()
        except UnicodeEncodeError as error:
            raise _invalid(name, f"is not valid Unicode: {error.reason}", value) from None
        except (TypeError, ValueError, RecursionError) as error:
            raise _invalid(name, f"cannot be written as JSON: {error}", value) from None

    def to_message(self) -> structured_output_pb2.StructuredOutput:
        """The message of the contract."""
        message = structured_output_pb2.StructuredOutput()
        if isinstance(self.json_schema, str):
            message.json_schema = _utf8(self.json_schema)
        elif self.json_schema is not None:
            message.json_schema = json.dumps(dict(self.json_schema), allow_nan=False)
        if self.regex is not None:
            message.regex = _utf8(self.regex)
        if self.grammar is not None:
            message.grammar = _utf8(self.grammar)
        if self.choices is not None:
            message.choices.values.extend(map(_utf8, self.choices))
        for token_ids in self.token_choices or ():
            message.token_choices.lists.add(ids=token_ids)
        return message


def _token_lists(value: object) -> tuple[tuple[int, ...], ...]:
    must = "must hold lists of token ids, at least one and no empty one"
    if not isinstance(value, Iterable):
        raise _invalid("token_choices", must, value)
    try:
        lists = tuple(tuple(map(operator.index, token_ids)) for token_ids in value)
    except TypeError:
        raise _invalid("token_choices", must, value) from None
    if not lists or not all(lists):
        raise _invalid("token_choices", must, value)
    if any(not 0 <= token_id <= MAX_UINT32 for token_ids in lists for token_id in token_ids):
        raise _invalid("token_choices", f"ids must be in [0, {MAX_UINT32}]", value)
    return lists


def _utf8(text: str) -> str:
    text.encode()  # protobuf's own complaint is harder to understand
    return text


def _invalid(name: str, must: str, value: object) -> InvalidRequestError:
    return InvalidRequestError(
        f"structured_output.{name}: {must}, got {value!r:.60}", field=f"structured_output.{name}"
    )
