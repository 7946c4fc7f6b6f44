"""How a command ends when it fails: one line on standard error and an exit code.

1 is for what went wrong, 2 for wrong usage.
"""

from __future__ import annotations

from typing import NoReturn

import typer

from outrider_client._errors import InvalidRequestError, OutriderError, UnavailableError

FAILED = 1
USAGE = 2


def fail(text: str, *, code: int = FAILED) -> NoReturn:
    """Ends the command with one line on standard error."""
    typer.echo(f"outrider: {' '.join(text.split())}", err=True)
    raise typer.Exit(code)


def fail_with(error: OutriderError, *, server: str) -> NoReturn:
    """Ends the command for an error of a call."""
    if isinstance(error, UnavailableError):
        fail(f"{server} cannot be reached: {error.message}")
    # What never left this process was wrong on the command line.
    local = isinstance(error, InvalidRequestError) and not error.request_id
    fail(str(error), code=USAGE if local else FAILED)
