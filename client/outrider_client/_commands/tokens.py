"""`outrider tokenize` and `outrider detokenize`: text to token ids and back."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from outrider_client._client import Client
from outrider_client._commands.connected import connected
from outrider_client._commands.printing import AsJson, print_json, token_list


@connected
def tokenize(
    client: Client,
    text: Annotated[str, typer.Argument(metavar="TEXT", help="The text; - reads standard input.")],
    special_tokens: Annotated[
        bool, typer.Option(help="Let the tokenizer add its special tokens.")
    ] = True,
    as_json: AsJson = False,
) -> None:
    """Turn TEXT into token ids with the server's tokenizer."""
    text = sys.stdin.read() if text == "-" else text
    ids = client.tokenize(text, add_special_tokens=special_tokens)
    if as_json:
        print_json({"token_ids": ids})
    else:
        typer.echo(" ".join(map(str, ids)))


@connected
def detokenize(
    client: Client,
    token_ids: Annotated[
        list[str], typer.Argument(metavar="TOKEN_IDS...", help="Token ids, by spaces or commas.")
    ],
    special_tokens: Annotated[
        bool, typer.Option(help="Write special tokens instead of leaving them out.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Turn TOKEN_IDS into text with the server's tokenizer."""
    text = client.detokenize(
        token_list(" ".join(token_ids)), skip_special_tokens=not special_tokens
    )
    if as_json:
        print_json({"text": text})
    else:
        typer.echo(text)
