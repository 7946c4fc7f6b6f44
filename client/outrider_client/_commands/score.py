"""`outrider score`: how probable a given text is, token by token."""

from __future__ import annotations

import math
import sys
from typing import Annotated

import typer

from outrider_client._client import Client
from outrider_client._commands.connected import connected
from outrider_client._commands.painting import visible
from outrider_client._commands.printing import AsJson, print_json, print_lines, token_list


@connected
def score(
    client: Client,
    text: Annotated[str, typer.Argument(metavar="TEXT", help="The text; - reads standard input.")],
    first_position: Annotated[
        int,
        typer.Option(min=1, help="Position of the first token to score; those before are given."),
    ] = 1,
    token_ids: Annotated[
        bool,
        typer.Option("--token-ids", help="TEXT is token ids, separated by spaces or commas."),
    ] = False,
    log_probs: Annotated[
        int,
        typer.Option(min=0, max=20, help="Alternatives to tell for each position, with --json."),
    ] = 0,
    as_json: AsJson = False,
) -> None:
    """Tell how probable TEXT is under the served model, token by token."""
    text = sys.stdin.read() if text == "-" else text
    scores = client.score(
        token_list(text) if token_ids else text,
        first_position=first_position,
        log_probs=log_probs,
    )
    if as_json:
        print_json({"log_likelihood": scores.log_likelihood, "scores": scores})
        return
    distinct = set(scores.token_ids)
    pieces = {i: str(i) if token_ids else repr(visible(client.detokenize([i]))) for i in distinct}
    for token_id, known in zip(scores.token_ids, scores.log_probs, strict=True):
        typer.echo(f"{known.raw:9.4f}  {pieces[token_id]}")
    perplexity = math.exp(-scores.log_likelihood / len(scores.token_ids))
    print_lines(
        [
            ("log-likelihood", f"{scores.log_likelihood:.4f}"),
            ("perplexity", f"{perplexity:.3f}"),
        ]
    )
