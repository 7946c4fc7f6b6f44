"""Reads what is in `deploy/`, and what the commands it calls understand."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml  # type: ignore[import-untyped]  # no stubs among the dependencies

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"


class Stage(NamedTuple):
    """One stage of a Dockerfile."""

    base: str
    instructions: list[tuple[str, str]]

    def of(self, keyword: str) -> list[str]:
        """Arguments of all instructions of a kind."""
        return [arguments for word, arguments in self.instructions if word == keyword]


def dockerfile_stages() -> dict[str, Stage]:
    """The stages by name, in order."""
    text = re.sub(r"^#.*\n", "", (DEPLOY / "Dockerfile").read_text(), flags=re.MULTILINE)
    stages: dict[str, Stage] = {}
    for line in text.replace("\\\n", " ").splitlines():
        if not line.strip():
            continue
        keyword, _, arguments = line.partition(" ")
        if keyword == "FROM":
            base, _, name = arguments.split()
            stages[name] = Stage(base, [])
        else:
            list(stages.values())[-1].instructions.append((keyword, " ".join(arguments.split())))
    return stages


def documents(path: Path) -> list[dict[str, Any]]:
    """The documents of a YAML file."""
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def options(arguments: Sequence[str]) -> dict[str, list[str]]:
    """Command-line arguments as flags and their values, `--a=b` and `--a b` alike.

    A flag without a value has an empty one.
    """
    found: dict[str, list[str]] = {}
    words = [word for argument in arguments for word in argument.split("=", 1)]
    while words:
        flag = words.pop(0)
        assert flag.startswith("--"), flag
        has_value = words and not words[0].startswith("--")
        found.setdefault(flag, []).append(words.pop(0) if has_value else "")
    return found
