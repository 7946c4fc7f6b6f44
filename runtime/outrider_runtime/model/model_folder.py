"""The folder a model comes in: where it is, what lies in it, what its JSON files say.

Reads no weights and runs nothing. Knows transformers' file names, but not transformers.
"""

from __future__ import annotations

import json
import textwrap
from pathlib import Path

from huggingface_hub import snapshot_download
from outrider.v1.generation_config_pb2 import GenerationConfig
from outrider_contract.generation_config import ConfigValueError, from_json_dict

from outrider_runtime.errors import StartupError

# What a model needs, of a repository that may also hold pickles, other formats and duplicates.
_HUB_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
_HUB_SKIPPED = ["*/*", "consolidated*"]


def resolve_folder(path_or_hub_id: str) -> Path:
    """Returns the local folder of a model, downloading it if the name is no folder but a hub id.

    Raises:
        StartupError: neither a folder nor on the hub.
    """
    folder = Path(path_or_hub_id)
    if not path_or_hub_id:
        raise StartupError("no model given: name a folder or a hub id")
    if folder.is_dir():
        return folder
    if folder.exists():
        raise StartupError(f"{path_or_hub_id} is a file: give the folder that holds config.json")
    is_hub_id = path_or_hub_id.count("/") <= 1 and not path_or_hub_id.startswith((".", "/", "~"))
    if not is_hub_id:
        raise StartupError(f"model folder {path_or_hub_id!r} does not exist")
    try:
        return Path(
            snapshot_download(
                path_or_hub_id, allow_patterns=_HUB_FILES, ignore_patterns=_HUB_SKIPPED
            )
        )
    except Exception as error:  # of the hub's library, of HTTP, of the network, of the disk
        raise StartupError(
            f"model {path_or_hub_id!r} is neither a folder here nor available from the hub: "
            f"{one_line(error)}"
        ) from error


def require_safetensors(folder: Path) -> None:
    """Refuses a folder that has no weights, or only such as may run code when they are read.

    Raises:
        StartupError: saying which.
    """
    if any(folder.glob("*.safetensors")):
        return
    if any(folder.glob("*.bin")) or any(folder.glob("*.pt")) or any(folder.glob("*.pth")):
        raise StartupError(
            f"{folder} has only pickled weights, which could run code when loaded: "
            "convert them to safetensors (model.save_pretrained)"
        )
    raise StartupError(f"{folder} has no weights: expected model.safetensors")


def read_json(file: Path) -> dict[str, object]:
    """Returns the JSON object in a file.

    Raises:
        StartupError: it cannot be read, or is not a JSON object.
    """
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise StartupError(f"{file} cannot be read: {one_line(error)}") from error
    if not isinstance(values, dict):
        raise StartupError(f"{file} is not a JSON object")
    return values


def generation_defaults(folder: Path) -> GenerationConfig | None:
    """Returns the model's own generation_config.json, if there is one.

    Read here, because transformers quietly falls back to its defaults when the file is broken.

    Raises:
        StartupError: the file is not valid, naming the option.
    """
    file = folder / "generation_config.json"
    return to_generation_config(read_json(file), source=file) if file.is_file() else None


def to_generation_config(values: dict[str, object], *, source: Path) -> GenerationConfig:
    """Returns generation options as a message; `source` is what an error names."""
    # Old model files write -1 for "no such token".
    known = {
        name: value
        for name, value in values.items()
        if not (name.endswith("_token_id") and isinstance(value, int) and value < 0)
    }
    try:
        return from_json_dict(known, ignore_unknown=True)
    except ConfigValueError as error:
        raise StartupError(f"{source} is not valid: {error}") from error


def one_line(error: BaseException) -> str:
    """Returns an error's text as one line of reasonable length."""
    text = " ".join(str(error).split())
    return textwrap.shorten(text, 300, placeholder=" ...") or type(error).__name__
