"""Options of `outrider generate`: from what was typed to configurations.

Knows nothing of calls.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from outrider_contract.generation_config import FIELD_NAMES

from outrider_client._commands.failures import USAGE, fail
from outrider_client._errors import InvalidRequestError
from outrider_client._generation_config import GenerationConfig
from outrider_client._plugins import Plugin
from outrider_client._speculation_config import SpeculationConfig
from outrider_client._structured_output import StructuredOutput


def generation_config(settings: Sequence[str], file: Path | None) -> GenerationConfig:
    """The configuration of a file with the settings over it.

    A value of null unsets the field, at the server too: it goes into `clear_fields`.
    """
    values = _parsed("--set", settings, FIELD_NAMES, "GenerationConfig")
    try:
        config = GenerationConfig() if file is None else GenerationConfig.from_pretrained(file)
    except (OSError, ValueError) as error:
        fail(f"--config: {error}", code=USAGE)
    cleared = [name for name, value in values.items() if value is None]
    try:
        config.update(clear_fields=cleared, **values)
    except InvalidRequestError as error:
        fail(f"--set {error.message}", code=USAGE)
    return config


def speculation_config(
    settings: Sequence[str], *, enabled: bool, prediction: str | None
) -> SpeculationConfig | None:
    """The speculation settings; None when nothing is said about them.

    A prediction is the name of a file that is there, or a text.
    """
    names = [field.name for field in fields(SpeculationConfig)]
    values = _parsed("--speculation", settings, names, "SpeculationConfig")
    if not enabled:
        values["enabled"] = False
    if prediction is not None:
        values["prediction_text"] = _content(prediction)
    try:
        return SpeculationConfig(**values) if values else None
    except InvalidRequestError as error:
        fail(f"--{error.message.replace('.', ' ', 1)}", code=USAGE)


def _content(file_or_text: str) -> str:
    try:
        path = Path(file_or_text)
        return path.read_text(encoding="utf-8") if path.is_file() else file_or_text
    except (OSError, ValueError) as error:
        fail(f"--prediction: {error}", code=USAGE)


def structured_output(
    json_schema: str | None, regex: str | None, choices: Sequence[str] | None
) -> StructuredOutput | None:
    """The form of the text; None when nothing is said about it. A schema may be a file's name."""
    if json_schema is not None and not json_schema.lstrip().startswith("{"):
        try:
            json_schema = Path(json_schema).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            fail(f"--json-schema: {error}", code=USAGE)
    if json_schema is None and regex is None and not choices:
        return None
    try:
        return StructuredOutput(json_schema=json_schema, regex=regex, choices=choices or None)
    except InvalidRequestError as error:
        fail(error.message, code=USAGE)


def plugins(option: str, given: Sequence[str]) -> list[Plugin]:
    """Plug-ins, each written NAME or NAME=PARAMETERS, the parameters as a JSON object."""
    named: list[Plugin] = []
    for each in given:
        name, _, text = each.partition("=")
        try:
            parameters = json.loads(text or "{}")
        except (ValueError, RecursionError) as error:
            fail(f"{option}: the parameters of {name} are not JSON: {error}", code=USAGE)
        if not isinstance(parameters, dict):
            fail(f"{option}: the parameters of {name} must be a JSON object", code=USAGE)
        named.append(Plugin(name, parameters))
    return named


def _parsed(
    option: str, settings: Iterable[str], known: Sequence[str], what: str
) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        name = name.strip()
        if not equals:
            fail(f"{option}: must be name=value, got {setting!r}", code=USAGE)
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            fail(f"{option}: {name!r} is not a field of {what}{hint}", code=USAGE)
        values[name] = _value(text)
    return values


def _value(text: str) -> object:
    """`text` as JSON if it is JSON, else as it is: `true`, `0.9`, `[1, 2]`, `heuristic`."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
