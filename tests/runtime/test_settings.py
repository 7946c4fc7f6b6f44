"""A setting comes from the flag, else the environment, else the file, else the default."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Annotated, NamedTuple

import pytest
import typer
from outrider_runtime.errors import StartupError
from outrider_runtime.logs import LogLevel
from outrider_runtime.settings import (
    ApiKey,
    ConfigFile,
    Host,
    Level,
    Port,
    flag,
    startup_errors,
)
from typer.testing import CliRunner

Draft = Annotated[list[str] | None, flag("--draft", "A draft service; may repeat.")]
MaxNumSeqs = Annotated[int, flag("--max-num-seqs", "Most sequences at once.", min=1)]
Eager = Annotated[bool, flag("--eager/--no-eager", "A switch.")]


class Seen(NamedTuple):
    host: str
    port: int
    draft: list[str]
    max_num_seqs: int
    log_level: LogLevel
    api_key: str | None


def run(
    arguments: list[str], environment: dict[str, str] | None = None
) -> tuple[Seen | None, str, int]:
    seen: list[Seen] = []
    app = typer.Typer(add_completion=False)

    @app.command()
    def serve(
        host: Host = "127.0.0.1",
        port: Port = 50051,
        draft: Draft = None,
        max_num_seqs: MaxNumSeqs = 8,
        log_level: Level = LogLevel.INFO,
        api_key: ApiKey = None,
        config: ConfigFile = None,
    ) -> None:
        seen.append(Seen(host, port, draft or [], max_num_seqs, log_level, api_key))

    result = CliRunner().invoke(
        app, arguments, env={**(environment or {}), "TERMINAL_WIDTH": "200", "NO_COLOR": "1"}
    )
    return (seen[0] if seen else None), result.output, result.exit_code


@pytest.mark.parametrize("sources", list(itertools.product([False, True], repeat=3)))
def test_flag_wins_over_environment_over_file_over_default(
    tmp_path: Path, sources: tuple[bool, bool, bool]
) -> None:
    in_flag, in_environment, in_file = sources
    file = tmp_path / "outrider.toml"
    file.write_text("max-num-seqs = 30\n" if in_file else "")
    arguments = ["--config", str(file)] + (["--max-num-seqs", "10"] if in_flag else [])
    environment = {"OUTRIDER_MAX_NUM_SEQS": "20"} if in_environment else {}
    seen, output, code = run(arguments, environment)
    assert code == 0, output
    assert seen is not None
    assert seen.max_num_seqs == (10 if in_flag else 20 if in_environment else 30 if in_file else 8)


def test_a_file_may_hold_any_setting_in_either_spelling(tmp_path: Path) -> None:
    file = tmp_path / "outrider.toml"
    file.write_text(
        'host = "::1"\nport = 7\ndraft = ["a:1", "b:2"]\nmax_num_seqs = 3\nlog-level = "debug"\n'
    )
    # The file itself may come from the environment.
    seen, output, code = run([], {"OUTRIDER_CONFIG": str(file)})
    assert code == 0, output
    assert seen == Seen("::1", 7, ["a:1", "b:2"], 3, LogLevel.DEBUG, None)


def test_repeated_flags_and_the_variable_give_a_list() -> None:
    seen, *_ = run(["--draft", "a:1", "--draft", "b:2"])
    assert seen is not None
    assert seen.draft == ["a:1", "b:2"]
    seen, *_ = run([], {"OUTRIDER_DRAFT": "a:1 b:2"})
    assert seen is not None
    assert seen.draft == ["a:1", "b:2"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("prot = 7\n", "unknown setting 'prot'"),
        ('config = "other"\n', "unknown setting 'config'"),
        ("port = [\n", "is not TOML"),
        ("[server]\nport = 7\n", "'server' is a table"),
        ("max-num-seqs = 1\nmax_num_seqs = 2\n", "there twice"),
        ("max-num-seqs = 0\n", "max-num-seqs"),
        ('port = "x"\n', "port"),
    ],
)
def test_a_file_that_is_no_good_is_refused(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "outrider.toml"
    file.write_text(text)
    seen, output, code = run(["--config", str(file)])
    assert seen is None
    assert code == 2
    assert said in " ".join(output.replace("│", " ").split())


def test_a_file_that_is_missing_is_refused(tmp_path: Path) -> None:
    seen, output, code = run(["--config", str(tmp_path / "absent.toml")])
    assert seen is None
    assert code == 2
    assert "cannot read" in output


def test_help_names_each_variable() -> None:
    _, output, code = run(["--help"])
    assert code == 0
    for variable in ("OUTRIDER_HOST", "OUTRIDER_MAX_NUM_SEQS", "OUTRIDER_CONFIG"):
        assert variable in output


def test_a_startup_error_is_one_line_and_status_1() -> None:
    app = typer.Typer(add_completion=False)

    @app.command()
    def serve() -> None:
        with startup_errors("outrider-target"):
            raise StartupError("no\n model here")

    result = CliRunner().invoke(app, [])
    assert result.exit_code == 1
    assert result.output == "outrider-target: no model here\n"
