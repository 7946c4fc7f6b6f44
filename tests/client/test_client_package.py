"""The package is light, says what is public, and fails clearly where an extra is missing."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from typing import Any

import outrider_client
import pytest

HEAVY = ["torch", "numpy", "transformers", "tokenizers", "structlog", "typer", "rich", "pydantic"]


def python(code: str) -> Any:
    """What a fresh interpreter prints as JSON."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize("module", ["outrider_client", "outrider_client.cli"])
def test_importing_the_client_loads_nothing_heavy(module: str) -> None:
    loaded = python(f"import json, sys, {module}; print(json.dumps(sorted(sys.modules)))")
    assert "grpc" in loaded
    assert [name for name in HEAVY if name in loaded] == []


def test_a_completion_needs_nothing_heavy_either() -> None:
    """Nor does anything that is imported on the way to an answer."""
    loaded = python(
        "import json, sys\n"
        "from outrider_client import Client, GenerationConfig, OutriderError\n"
        "try:\n"
        "    with Client('127.0.0.1:1', max_retries=0) as client:\n"
        "        client.generate([1], GenerationConfig(top_p=0.5), timeout=10)\n"
        "except OutriderError as error:\n"
        "    print(json.dumps([error.code.name, *sorted(sys.modules)]))\n"
    )
    assert loaded[0] == "UNAVAILABLE"
    assert [name for name in HEAVY if name in loaded] == []


@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_without_its_extra_the_command_line_says_what_to_install(missing: str) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            f"import sys; sys.modules[{missing!r}] = None\n"
            "from outrider_client.cli import main; main()",
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr == "outrider: the command line needs: pip install 'outrider[cli]'\n"


def test_what_is_public_is_listed_in_order_and_documented() -> None:
    names = outrider_client.__all__
    assert names == sorted(names)
    assert len(names) == len(set(names))
    public = {
        name
        for name, value in vars(outrider_client).items()
        if not name.startswith("_") and not inspect.ismodule(value)
    }
    assert public == set(names)
    for name in names:
        assert inspect.getdoc(getattr(outrider_client, name)), name


def test_every_public_exception_is_of_one_family() -> None:
    for name in outrider_client.__all__:
        value = getattr(outrider_client, name)
        if inspect.isclass(value) and issubclass(value, Exception):
            assert issubclass(value, outrider_client.OutriderError)
            assert name.endswith("Error")
