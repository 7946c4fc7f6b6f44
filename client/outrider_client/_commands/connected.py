"""What all commands share: the options that say where the server is, and a client made from them.

Knows nothing of what a command does with the client.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from outrider_client._client import Client
from outrider_client._commands.failures import USAGE, fail, fail_with
from outrider_client._connection import TLSConfig
from outrider_client._errors import OutriderError

DEFAULT_SERVER = "127.0.0.1:50051"

_PANEL = "Connection"


def _connect(
    server: Annotated[
        str,
        typer.Option(
            envvar="OUTRIDER_SERVER",
            metavar="HOST:PORT",
            help="Address of the target service.",
            rich_help_panel=_PANEL,
        ),
    ] = DEFAULT_SERVER,
    timeout: Annotated[
        float | None,
        typer.Option(
            envvar="OUTRIDER_TIMEOUT",
            metavar="SECONDS",
            help="Give up after this many seconds, retries included.",
            rich_help_panel=_PANEL,
        ),
    ] = None,
    api_key: Annotated[
        str | None,
        typer.Option(
            envvar="OUTRIDER_API_KEY",
            help="Key to send, where the server asks for one. Better given by the variable: "
            "arguments are visible to other processes.",
            rich_help_panel=_PANEL,
        ),
    ] = None,
    ssl: Annotated[
        bool,
        typer.Option(
            "--ssl",
            envvar="OUTRIDER_SSL",
            help="Encrypt, trusting the usual certificate authorities. Implied by --ssl-*.",
            rich_help_panel=_PANEL,
        ),
    ] = False,
    ssl_ca_certs: Annotated[
        Path | None,
        typer.Option(
            envvar="OUTRIDER_SSL_CA_CERTS",
            help="PEM file of the certificate authorities to trust.",
            rich_help_panel=_PANEL,
        ),
    ] = None,
    ssl_certfile: Annotated[
        Path | None,
        typer.Option(
            envvar="OUTRIDER_SSL_CERTFILE",
            help="PEM file of the client's own certificate.",
            rich_help_panel=_PANEL,
        ),
    ] = None,
    ssl_keyfile: Annotated[
        Path | None,
        typer.Option(
            envvar="OUTRIDER_SSL_KEYFILE",
            help="PEM file of the key of --ssl-certfile.",
            rich_help_panel=_PANEL,
        ),
    ] = None,
) -> Client:
    """The client that the options ask for."""
    encrypted = ssl or any((ssl_ca_certs, ssl_certfile, ssl_keyfile))
    try:
        tls = TLSConfig(ssl_ca_certs, ssl_certfile, ssl_keyfile) if encrypted else None
        return Client(server, api_key=api_key, tls=tls, timeout=timeout)
    except (ValueError, OSError) as error:
        fail(str(error), code=USAGE)


def connected(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command whose first parameter is a Client the options to make one.

    Errors of calls end the command with one line on standard error.
    """
    options = list(inspect.signature(_connect).parameters.values())
    own = list(inspect.signature(command).parameters.values())[1:]
    hints = {
        **get_type_hints(command, include_extras=True),
        **get_type_hints(_connect, include_extras=True),
    }

    @functools.wraps(command)
    def run(**values: Any) -> None:
        connection = {option.name: values.pop(option.name) for option in options}
        try:
            with _connect(**connection) as client:
                command(client, **values)
        except OutriderError as error:
            fail_with(error, server=connection["server"])

    parameters = [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints[parameter.name])
        for parameter in (*own, *options)
    ]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # typer reads it
    run.__annotations__ = {parameter.name: hints[parameter.name] for parameter in parameters}
    del run.__wrapped__  # its signature would win
    return run
