"""Options of generation as transformers writes them: JSON files and objects of its own classes.

Takes transformers' objects by their shape (`to_diff_dict`, `to_dict`), without importing it. Knows
nothing of messages.
"""

from __future__ import annotations

import json
import numbers
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

FILE_NAME = "generation_config.json"
"""transformers' name of the file in a model's folder."""

MODEL_FILE_NAME = "config.json"
"""transformers' name of the model's own configuration."""

_OUTPUT_FLAGS = ("output_attentions", "output_hidden_states", "output_scores", "output_logits")
_DECODERS = ("decoder", "generator", "text_config")


@runtime_checkable
class SupportsToDict(Protocol):
    """A configuration object of transformers, or anything like it."""

    def to_dict(self) -> dict[str, Any]:
        """All values by name."""
        ...


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        OSError: The file cannot be read.
        ValueError: It does not hold a JSON object.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not a JSON file: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(values).__name__}")
    return values


def file_in(path: Path, name: str) -> Path:
    """`path` itself if it is a file, else the file `name` in it.

    Raises:
        FileNotFoundError: There is neither.
    """
    if path.is_file():
        return path
    if (path / name).is_file():
        return path / name
    raise FileNotFoundError(f"{path} is neither a JSON file nor a folder with {name}")


def object_values(config: SupportsToDict) -> dict[str, Any]:
    """What is set in one of transformers' objects.

    Up to release 4.57 an unset field holds a default; `to_diff_dict` leaves those out, and the
    release that wrote it, which the object itself never held, is left out here.
    """
    to_diff_dict = getattr(config, "to_diff_dict", None)
    values = to_diff_dict() if callable(to_diff_dict) else config.to_dict()
    return {name: value for name, value in values.items() if name != "transformers_version"}


def options(values: Mapping[str, object]) -> dict[str, object]:
    """The options among what transformers writes: no nulls, no notes of its own."""
    found = {
        name: value
        for name, value in values.items()
        if value is not None and not name.startswith("_")
    }
    # -1 is how older files say that there is no padding token.
    if found.get("pad_token_id") == -1:
        del found["pad_token_id"]
    return found


def model_options(config: Mapping[str, Any] | SupportsToDict) -> dict[str, object]:
    """The options that a model's own configuration carries.

    Values of the decoder part fill what the outer part leaves unset.

    Source: transformers 5.23, `GenerationConfig.from_model_config`.
    """
    if isinstance(config, Mapping):
        outer: Mapping[str, Any] = config
        inner: Mapping[str, Any] = next((config[key] for key in _DECODERS if config.get(key)), {})
    else:
        outer = config.to_dict()
        text_config = getattr(config, "get_text_config", None)  # transformers' configs have it
        inner = text_config(decoder=True).to_dict() if callable(text_config) else {}
    found = {**options(inner), **options(outer)}
    if found.get("force_bos_token_to_be_generated") and "bos_token_id" in found:
        found["forced_bos_token_id"] = found["bos_token_id"]
    if any(found.get(flag) for flag in _OUTPUT_FLAGS):
        found["return_dict_in_generate"] = True
    return found


def plain(value: object) -> object:
    """`value` in the shape it has in JSON.

    Tuples become lists, a dict with tuples as keys the list of its items, numbers of other
    libraries Python's own, and nested configuration objects dicts without nulls.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        if value and all(isinstance(key, tuple) for key in value):
            return [[list(key), plain(item)] for key, item in value.items()]
        return {key: plain(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, SupportsToDict):
        return plain(value.to_dict())
    if isinstance(value, numbers.Integral):
        return int(value)
    return float(value) if isinstance(value, numbers.Real) else value
