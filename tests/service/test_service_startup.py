"""A service that cannot start says why in one line and ends with status 1; flags reach settings."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import structlog
import torch
import typer
from outrider_target import __main__ as command
from outrider_target.settings import TargetSettings
from service.tiny_folder import VOCAB_SIZE
from typer.testing import CliRunner

CERTIFICATES = Path(__file__).parents[1] / "runtime" / "certificates"


@pytest.fixture(autouse=True)
def own_logs() -> Iterator[None]:
    """The command sets up logging for its process; this one gets its own back."""
    root, configuration = logging.getLogger(), structlog.get_config()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.configure(**configuration)


def run(*arguments: str, environment: Mapping[str, str] | None = None) -> tuple[int, str, str]:
    """The command in this process: exit status, standard output, standard error."""
    result = CliRunner().invoke(
        command.app,
        arguments,
        env={"TERMINAL_WIDTH": "200", "NO_COLOR": "1", **(environment or {})},
    )
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def said(*arguments: str) -> str:
    """The one line of a start that fails; logs, which are JSON, aside."""
    status, output, errors = run("--port", "0", *arguments)
    assert (status, output) == (1, "")
    (line,) = [line for line in errors.splitlines() if not line.startswith("{")]
    assert line.startswith("outrider-target: ")
    return line


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    """The model's folder, to be damaged."""
    return Path(shutil.copytree(folder, tmp_path / "model"))


Damage = Callable[[Path], object]


def rewrite(name: str, **changes: object) -> Damage:
    """Changes entries of a JSON file; None takes one out."""

    def damage(model: Path) -> None:
        values = json.loads((model / name).read_text()) | changes
        values = {key: value for key, value in values.items() if value is not None}
        (model / name).write_text(json.dumps(values))

    return damage


def write(name: str, data: bytes) -> Damage:
    return lambda model: (model / name).write_bytes(data)


def truncate(model: Path) -> None:
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])


def pickle_only(model: Path) -> None:
    (model / "model.safetensors").unlink()
    torch.save({"x": torch.zeros(1)}, model / "pytorch_model.bin")


DAMAGES: dict[str, tuple[Damage, str]] = {
    "no config": (lambda model: (model / "config.json").unlink(), "has no config.json"),
    "config is not JSON": (write("config.json", b"{"), "config.json cannot be read"),
    "config is binary": (write("config.json", b"\xff\xfe\x00"), "config.json cannot be read"),
    "config is a list": (write("config.json", b"[]"), "is not a JSON object"),
    "no architecture": (rewrite("config.json", model_type=None), "names no model_type"),
    "unknown architecture": (rewrite("config.json", model_type="llamma"), "'llamma' is not known"),
    "code of its own": (
        rewrite("config.json", model_type="mine", auto_map={"AutoConfig": "evil.Config"}),
        "never run",
    ),
    "stateful architecture": (
        lambda model: write("config.json", b'{"model_type": "mamba"}')(model),
        "'mamba' is not supported",
    ),
    "encoder-decoder": (
        lambda model: write("config.json", b'{"model_type": "t5"}')(model),
        "'t5' is not supported",
    ),
    "weights missing": (lambda model: (model / "model.safetensors").unlink(), "has no weights"),
    "weights pickled": (pickle_only, "only pickled weights"),
    "weights cut off": (truncate, "weights are damaged"),
    "weights are junk": (write("model.safetensors", b"junk" * 100), "weights are damaged"),
    "weights of other shapes": (
        rewrite("config.json", vocab_size=VOCAB_SIZE + 8),
        "do not have the shapes",
    ),
    "weights of a smaller model": (rewrite("config.json", num_hidden_layers=4), "lack"),
    "tokenizer is junk": (write("tokenizer.json", b"{"), "cannot load the tokenizer"),
    "generation config is not JSON": (
        write("generation_config.json", b"{"),
        "generation_config.json cannot be read",
    ),
    "generation config of wrong types": (
        rewrite("generation_config.json", top_k="many"),
        "top_k",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_model_folder_is_one_clear_line(copied: Path, name: str) -> None:
    damage, why = DAMAGES[name]
    damage(copied)
    assert why in said("--model", str(copied))


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("--model", "/nowhere/at/all"), "'/nowhere/at/all' does not exist"),
        (("--model", "./nowhere"), "does not exist"),
        (("--model", str(Path(__file__))), "is a file"),
        (("--model", ""), "no model given"),
        (("--model", "{folder}", "--dtype", "int3"), "int3"),
        (("--model", "{folder}", "--device", "tpu"), "tpu"),
        (
            ("--model", "{folder}", "--quantization", "int8", "--cpu-kernels", "off"),
            "--quantization int8: the CPU kernels are off",
        ),
        (
            ("--model", "{folder}", "--quantization", "int8", "--dtype", "bfloat16"),
            "--quantization int8: the CPU kernels cannot be had: they are for float32 on the CPU",
        ),
        (("--model", "{folder}", "--max-model-len", "4096"), "--max-model-len 4096"),
        (("--model", "{folder}", "--kv-cache-tokens", "20"), "room for 20 tokens"),
        (("--model", "{folder}", "--kv-cache-bytes", "10"), "it needs at least"),
        (("--model", "{folder}", "--tensor-parallel-size", "2"), "torchrun --nproc-per-node 2"),
        (("--model", "{folder}", "--host", "192.0.2.1"), "not an address of this machine"),
        (("--model", "{folder}", "--ssl-keyfile", "x"), "go together"),
        (("--model", "{folder}", "--draft-ca-certs", "x.pem", "--draft", "a:1"), "x.pem"),
    ],
)
def test_settings_that_cannot_be_met_are_one_clear_line(
    folder: Path, arguments: tuple[str, ...], why: str
) -> None:
    assert why in said(*(each.format(folder=folder) for each in arguments))


@pytest.mark.parametrize("flag", ["--port", "--metrics-port"])
def test_a_taken_port_is_one_clear_line(folder: Path, flag: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        line = said("--model", str(folder), flag, port)
    assert port in line


def test_a_taken_port_is_found_before_the_model_is_loaded() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        line = said("--model", "/nowhere/at/all", "--port", port)
    assert f"port {port} on 127.0.0.1 is taken" in line


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((), "--model"),
        (("--model", "x", "--max-num-seqs", "0"), "--max-num-seqs"),
        (("--model", "x", "--port", "99999"), "--port"),
        (("--model", "x", "--max-assistant-tokens", "65"), "--max-assistant-tokens"),
        (("--model", "x", "--assistant-confidence-threshold", "1.5"), "--assistant-confidence-"),
        (("--model", "x", "--num-assistant-tokens-schedule", "linear"), "heuristic_transient"),
        (("--model", "x", "--no-such-flag"), "--no-such-flag"),
        (("--model", "x", "--config", "/nowhere.toml"), "/nowhere.toml"),
    ],
)
def test_a_mistaken_flag_is_named_and_the_status_is_2(
    arguments: tuple[str, ...], named: str
) -> None:
    status, output, errors = run(*arguments)
    assert status == 2
    assert output == ""
    assert named in errors


def test_a_whole_process_that_cannot_start_ends_with_1_and_one_line(copied: Path) -> None:
    truncate(copied)
    done = subprocess.run(
        [sys.executable, "-m", "outrider_target", "--model", str(copied), "--port", "0"],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"outrider-target: {copied}: the weights are damaged")


# --- flags into settings


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> Callable[..., TargetSettings]:
    """The settings that a command line, an environment and a file lead to."""

    def settings(*arguments: str, **options: Any) -> TargetSettings:
        seen: list[TargetSettings] = []

        def note(settings: TargetSettings) -> None:
            seen.append(settings)

        monkeypatch.setattr(command, "_run", note)
        status, _, errors = run(*arguments, **options)
        assert status == 0, errors
        return seen[0]

    return settings


def flags() -> dict[str, Any]:
    """Every flag of the command, by name, as typer knows it."""
    parameters = typer.main.get_command(command.app).params
    return {each.opts[0]: each for each in parameters if each.name not in ("config", "help")}


VALUES = {
    # flag: three values, for file, environment and flag
    "--model": ("a", "b", "c"),
    "--draft": (["a:1", "b:2"], "c:3 d:4", "e:5"),
    "--plugin": (["a", "b"], "c d", "e"),
    "--host": ("a", "b", "c"),
    "--port": (1, 2, 3),
    "--served-model-name": ("a", "b", "c"),
    "--dtype": ("float32", "float16", "bfloat16"),
    "--cpu-kernels": ("on", "off", "auto"),
    "--quantization": ("int8", "none", "int8"),
    "--compile": ("on", "off", "auto"),
    "--device": ("cpu", "cuda", "cuda:1"),
    "--draft-method": ("remote", "prompt-lookup", "suffix"),
    "--suffix-cache-tokens": (0, 64, 1000),
    "--num-assistant-tokens-schedule": ("constant", "heuristic", "heuristic_transient"),
    "--assistant-confidence-threshold": (0.1, 0.2, 0.3),
    "--speedup-probe-rate": (0.0, 0.1, 0.5),
    "--canary-rate": (0.1, 0.2, 1.0),
    "--otlp-traces-endpoint": ("http://a:1", "http://b:2", "https://c:3"),
    "--trace-sample-ratio": (0.0, 0.1, 0.5),
    "--grace": (1.0, 2.0, 3.0),
    "--insecure": (True, False, True),
    "--metrics-by-caller": (True, False, True),
    "--prefix-caching": (False, True, True),
    "--log-level": ("debug", "warning", "error"),
    "--log-format": ("json", "console", "json"),
    **{
        name: (Path("a"), Path("b"), Path("c"))
        for name in (
            "--ssl-keyfile",
            "--ssl-certfile",
            "--ssl-ca-certs",
            "--api-keys-file",
            "--draft-ca-certs",
            "--draft-ssl-keyfile",
            "--draft-ssl-certfile",
            "--draft-api-key-file",
        )
    },
    **dict.fromkeys(("--draft-api-key", "--api-key"), ("a", "b", "c")),
}
ELSEWHERE = ("--log-level", "--log-format")
"""Flags that are about the process and no part of the settings."""


def found(settings: object, name: str) -> object:
    """The value of a flag, wherever in the settings it is."""
    name = {"--grace": "grace_seconds", "--draft": "drafts", "--plugin": "plugins"}.get(
        name, name.lstrip("-").replace("-", "_")
    )
    for each in dataclasses.fields(settings):  # type: ignore[arg-type]  # a dataclass it is
        value = getattr(settings, each.name)
        if each.name == name and not dataclasses.is_dataclass(value):
            return value
        if dataclasses.is_dataclass(value) and (inside := found(value, name)) is not None:
            return inside
    return None


def as_found(name: str, value: Any) -> object:
    if name in ("--draft", "--plugin"):
        return tuple(value) if isinstance(value, list) else tuple(str(value).split())
    return value


def test_measured_costs_decide_unless_told_otherwise(
    settings: Callable[..., TargetSettings],
) -> None:
    assert settings("--model", "m").speculation.num_assistant_tokens_schedule == "auto"


@pytest.mark.parametrize("name", [name for name in flags() if name not in ELSEWHERE])
def test_flag_wins_over_environment_over_file_over_default(
    settings: Callable[..., TargetSettings], tmp_path: Path, name: str
) -> None:
    in_file, in_environment, in_flag = VALUES.get(name, (11, 12, 13))
    file = tmp_path / "outrider.toml"
    text = str(in_file) if isinstance(in_file, Path) else in_file
    file.write_text(f"{name.lstrip('-')} = {json.dumps(text)}\n")
    variable = "OUTRIDER_" + name.lstrip("-").replace("-", "_").upper()
    model = () if name == "--model" else ("--model", "m")

    def value(*arguments: str, **variables: str) -> object:
        return found(settings(*model, *arguments, environment=variables), name)

    by_file = ("--config", str(file))
    by_flag = (name,) if isinstance(in_flag, bool) else (name, str(in_flag))
    by_environment = {variable: str(in_environment)}
    assert value(*by_file) == as_found(name, in_file)
    assert value(*by_file, **by_environment) == as_found(name, in_environment)
    assert value(*by_file, *by_flag, **by_environment) == as_found(name, in_flag)
    if model:
        assert value() != as_found(name, in_file)


def test_help_lists_every_flag_with_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("typer.rich_utils.MAX_WIDTH", 200)  # nothing is broken across lines
    status, output, _ = run("--help")
    assert status == 0
    for name in flags():
        assert name in output
        assert "OUTRIDER_" + name.lstrip("-").replace("-", "_").upper() in output


def test_help_does_not_wait_for_torch() -> None:
    code = (
        "import sys; from outrider_target import __main__ as m\n"
        "try: m.app(['--help'])\n"
        "except SystemExit: pass\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=60)
