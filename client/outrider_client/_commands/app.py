"""The command line as a whole: its own commands, and those that other packages bring.

Knows nothing of what the commands do.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.metadata import EntryPoint, entry_points, version
from typing import Annotated

import typer

from outrider_client._commands.abort import abort
from outrider_client._commands.explain import explain
from outrider_client._commands.failures import fail
from outrider_client._commands.generate import generate
from outrider_client._commands.info import info
from outrider_client._commands.loads import loads
from outrider_client._commands.score import score
from outrider_client._commands.tokens import detokenize, tokenize

GROUP = "outrider.commands"
"""Entry point group of further commands: name to a function that typer can run."""

_OWN: dict[str, Callable[..., None]] = {
    "generate": generate,
    "info": info,
    "loads": loads,
    "explain": explain,
    "score": score,
    "tokenize": tokenize,
    "detokenize": detokenize,
    "abort": abort,
}


def run(arguments: Sequence[str] | None = None) -> None:
    """Runs one command and exits: 0 done, 1 failed, 2 wrong usage."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    build(given)(args=given, prog_name="outrider")


def build(arguments: Sequence[str]) -> typer.Typer:
    """The command line for these arguments.

    Commands of other packages are loaded when they are named, or listed in the help, and not when
    one of the client's own runs: they may be slow to import, or broken.
    """
    app = typer.Typer(
        name="outrider",
        help="Talks to an Outrider target service: speculative decoding over gRPC.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    app.callback()(_root)
    for name, command in _OWN.items():
        app.command(name)(command)
    named = next((argument for argument in arguments if not argument.startswith("-")), None)
    if named not in _OWN:
        for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name):
            if entry.name not in _OWN and named in (None, entry.name):
                app.command(entry.name)(_loaded(entry))
    return app


def _loaded(entry: EntryPoint) -> Callable[..., None]:
    try:
        command: Callable[..., None] = entry.load()
    except Exception as error:  # whatever another package does wrong must not take us down
        why = f"{entry.name}: cannot be loaded from {entry.value}: {error}"

        def broken() -> None:
            fail(why)

        broken.__doc__ = "Cannot be loaded."
        return broken
    return command


def _show_version(wanted: bool) -> None:  # typer calls it so
    if wanted:
        typer.echo(f"outrider {version('outrider')}")
        raise typer.Exit


def _root(
    _: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Talks to an Outrider target service: speculative decoding over gRPC."""
