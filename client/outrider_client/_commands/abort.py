"""`outrider abort`: ends running requests."""

from __future__ import annotations

from typing import Annotated

import typer

from outrider_client._client import Client
from outrider_client._commands.connected import connected
from outrider_client._commands.failures import fail
from outrider_client._commands.printing import AsJson, print_json


@connected
def abort(
    client: Client,
    request_ids: Annotated[
        list[str], typer.Argument(metavar="REQUEST_IDS...", help="Ids of the requests to end.")
    ],
    as_json: AsJson = False,
) -> None:
    """End running requests by id, whoever sent them. Exits with 1 when one was not running."""
    ended = client.abort(request_ids)
    missing = [name for name in request_ids if name not in ended]
    if as_json:
        print_json({"aborted_request_ids": ended})
    else:
        for name in ended:
            typer.echo(name)
    if missing:
        fail(f"not running: {', '.join(missing)}")
