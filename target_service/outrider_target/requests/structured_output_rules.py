"""What a request's `structured_output` asks for: exactly one form, of bounded size.

Sizes are what bounds the cost of compiling: llguidance's own limits do not cover it all. Whether
the form makes sense is for `grammar` to find out, which knows that library.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from decimal import Decimal

from outrider.v1 import structured_output_pb2 as pb
from outrider_runtime.errors import InvalidRequest, UnsupportedOption

from outrider_target.requests.request import Structure, TextForm

FIELD = "structured_output"

MAX_BYTES = {"json_schema": 16_384, "regex": 2048, "grammar": 8192, "choices": 16_384}

MAX_TOKEN_CHOICES = 65_536
"""Tokens in all lists together: a node of the trie takes some 200 bytes."""

_MAX_PATTERN_BYTES = 2048
"""Of all patterns of a schema: compiling a regular expression can take time in the square of its
length (7 kB of `\\p{L}*\\w*` took 2 s)."""

_MAX_MULTIPLE = 20_000
"""For the sum of a schema's `multipleOf`, and for their least common multiple: each becomes an
automaton with that many states, and those that apply to one number are combined."""
_MAX_DECIMALS = 9


def structure(message: pb.StructuredOutput, *, has_tokenizer: bool, vocab_size: int) -> Structure:
    """The form that the text must have.

    Args:
        message: What the request says.
        has_tokenizer: Whether the served model's tokens have text.
        vocab_size: Number of its tokens.

    Raises:
        InvalidRequest: There is no form, or it is empty or too large; names the field.
        UnsupportedOption: The model has no tokenizer, or the form holds what is not served.
    """
    name = message.WhichOneof("form")
    if name is None:
        raise InvalidRequest(
            FIELD, "set one of json_schema, regex, grammar, choices and token_choices"
        )
    if name == "token_choices":
        return _token_choices(message, vocab_size)
    if not has_tokenizer:
        raise UnsupportedOption(FIELD, "the served model has no tokenizer to make text with")
    field = f"{FIELD}.{name}"
    choices = list(message.choices.values)
    texts = choices if name == "choices" else [str(getattr(message, name))]
    if not texts or not all(texts):
        raise InvalidRequest(field, "must not be empty")
    size = sum(len(text.encode()) for text in texts)
    if size > MAX_BYTES[name]:
        raise InvalidRequest(field, f"has {size} bytes; at most {MAX_BYTES[name]} are possible")
    form = TextForm(name)
    if form is TextForm.CHOICES:
        return Structure(field, form, "start: " + " | ".join(map(json.dumps, texts)))
    if form is TextForm.JSON_SCHEMA:
        _check_schema(field, texts[0])
    if form is TextForm.GRAMMAR and "%json" in texts[0]:
        raise UnsupportedOption(field, "%json is not served; send a JSON Schema as json_schema")
    return Structure(field, form, texts[0])


def _token_choices(message: pb.StructuredOutput, vocab_size: int) -> Structure:
    field = f"{FIELD}.token_choices"
    lists = [list(entry.ids) for entry in message.token_choices.lists]
    if not lists or not all(lists):
        raise InvalidRequest(field, "must not be empty, nor hold an empty list")
    if (size := sum(map(len, lists))) > MAX_TOKEN_CHOICES:
        raise InvalidRequest(
            field, f"at most {MAX_TOKEN_CHOICES} tokens in all are possible, got {size}"
        )
    if (highest := max(map(max, lists))) >= vocab_size:
        raise InvalidRequest(field, f"token id {highest} is outside the vocabulary of {vocab_size}")
    return Structure(field, TextForm.TOKEN_CHOICES, "", lists)


def _check_schema(field: str, text: str) -> None:
    try:
        schema = json.loads(text)
    except RecursionError:
        raise InvalidRequest(field, "is nested too deeply") from None
    except ValueError as error:
        raise InvalidRequest(field, f"is not JSON: {error}") from None
    size = 0
    multiples: list[float] = []
    for key, value in _entries(schema):
        if key == "pattern" and isinstance(value, str):
            size += len(value.encode(errors="replace"))
        elif key == "patternProperties" and isinstance(value, dict):
            size += sum(len(pattern.encode(errors="replace")) for pattern in value)
        elif key == "multipleOf" and isinstance(value, int | float):
            multiples.append(value)
    if size > _MAX_PATTERN_BYTES:
        raise InvalidRequest(
            field, f"has {size} bytes of patterns; at most {_MAX_PATTERN_BYTES} are possible"
        )
    _check_multiples(field, multiples)


def _entries(schema: object) -> Iterator[tuple[str, object]]:
    """All keys and values at any depth."""
    rest = [schema]
    while rest:
        node = rest.pop()
        if isinstance(node, dict):
            yield from node.items()
            rest.extend(node.values())
        elif isinstance(node, list):
            rest.extend(node)


def _check_multiples(field: str, values: Sequence[float]) -> None:
    if not values:
        return
    numbers = [abs(Decimal(str(value))) for value in values]
    fits = all(number <= _MAX_MULTIPLE for number in numbers)  # not for NaN and infinity
    if fits:
        decimals = [max(0, -int(number.as_tuple().exponent)) for number in numbers]
        fits = max(decimals) <= _MAX_DECIMALS
    if fits:
        wholes = [int(n.scaleb(d)) for n, d in zip(numbers, decimals, strict=True)]
        alike = [int(n.scaleb(max(decimals))) for n in numbers]
        fits = sum(wholes) <= _MAX_MULTIPLE and math.lcm(*alike) <= _MAX_MULTIPLE
    if not fits:
        raise InvalidRequest(
            field,
            "its multipleOf are too large to follow: without their decimal points, their sum and "
            f"their least common multiple may be at most {_MAX_MULTIPLE}",
        )
