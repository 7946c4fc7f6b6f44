"""How results are printed: aligned lines for people, one JSON object for programs."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import fields, is_dataclass
from typing import Annotated, Any

import typer

from outrider_client._commands.failures import USAGE, fail
from outrider_client._generation_config import GenerationConfig
from outrider_client._speculation_config import SpeculationConfig

AsJson = Annotated[
    bool,
    typer.Option("--json", envvar="OUTRIDER_JSON", help="Print one JSON object instead of text."),
]


def print_json(value: object) -> None:
    """Prints a result as one line of JSON."""
    typer.echo(json.dumps(jsonable(value), ensure_ascii=False))


def print_lines(pairs: Iterable[tuple[str, object]]) -> None:
    """Prints names and values in two columns."""
    lines = list(pairs)
    width = max(len(name) for name, _ in lines)
    for name, value in lines:
        typer.echo(f"{name:<{width}}  {value}".rstrip())


def jsonable(value: Any) -> object:
    """A result in JSON's own types, its fields by name."""
    if isinstance(value, GenerationConfig | SpeculationConfig):
        return value.to_dict()
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: jsonable(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [jsonable(item) for item in value]
    if isinstance(value, dict):
        return {name: jsonable(item) for name, item in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None  # JSON has no infinities
    return value


def token_list(text: str) -> list[int]:
    """Token ids written with spaces or commas between them."""
    parts = text.replace(",", " ").split()
    if not all(part.isdecimal() for part in parts):
        fail(f"token ids must be numbers with spaces or commas between, got {text!r}", code=USAGE)
    return [int(part) for part in parts]
