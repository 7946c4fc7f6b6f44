"""`outrider generate`: streams a completion to the terminal, or prints it as JSON."""

from __future__ import annotations

import sys
from dataclasses import fields
from pathlib import Path
from typing import Annotated

import typer

from outrider_client._client import Client
from outrider_client._commands.connected import connected
from outrider_client._commands.painting import Painter, visible
from outrider_client._commands.printing import AsJson, print_json, token_list
from outrider_client._commands.settings import (
    generation_config,
    plugins,
    speculation_config,
    structured_output,
)
from outrider_client._completion import Completion
from outrider_client._stream import Stream


@connected
def generate(
    client: Client,
    prompt: Annotated[
        str, typer.Argument(metavar="PROMPT", help="The text to continue; - reads standard input.")
    ],
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="A field of GenerationConfig, by transformers' name; may repeat. The value is "
            "JSON, or else text: max_new_tokens=64, do_sample=true, stop_strings='[\"END\"]'. "
            "null unsets the field.",
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            envvar="OUTRIDER_CONFIG",
            help="A generation_config.json, or a folder that has one; --set goes over it.",
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            envvar="OUTRIDER_SEED", help="Seed of sampling: the same one gives the same text."
        ),
    ] = None,
    no_speculation: Annotated[
        bool,
        typer.Option(
            "--no-speculation",
            envvar="OUTRIDER_NO_SPECULATION",
            help="Decode plainly. The text is the same.",
        ),
    ] = False,
    speculation: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="A field of SpeculationConfig; may repeat: method=prompt-lookup, "
            "pacing=synchronous, max_assistant_tokens=8.",
        ),
    ] = None,
    prediction: Annotated[
        str | None,
        typer.Option(
            metavar="FILE_OR_TEXT",
            help="What the text is expected to be, or to be much like: it then comes faster.",
        ),
    ] = None,
    json_schema: Annotated[
        str | None,
        typer.Option(
            metavar="FILE_OR_TEXT",
            help="A JSON Schema that the text must fit: a file, or the schema itself.",
        ),
    ] = None,
    regex: Annotated[
        str | None, typer.Option(help="A regular expression that must match the whole text.")
    ] = None,
    choice: Annotated[
        list[str] | None, typer.Option(help="One of the texts to choose from; may repeat.")
    ] = None,
    negative_prompt: Annotated[
        str | None,
        typer.Option(
            help="What the text is guided away from, with --set guidance_scale=2; text, or with "
            "--token-ids token ids.",
        ),
    ] = None,
    logits_processor: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[=JSON]",
            help="A plug-in of the server that changes the scores, with its parameters; may "
            "repeat. `outrider info` lists them.",
        ),
    ] = None,
    stopping_criterion: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[=JSON]",
            help="A plug-in of the server that may end the text, likewise.",
        ),
    ] = None,
    token_ids: Annotated[
        bool,
        typer.Option(
            "--token-ids",
            help="The prompt is token ids, separated by spaces or commas; so is the output.",
        ),
    ] = False,
    request_id: Annotated[
        str | None, typer.Option(help="Name of the request, for logs and for `outrider abort`.")
    ] = None,
    log_probs: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=20,
            help="With --json: each token's log-probabilities, with so many alternatives.",
        ),
    ] = None,
    as_json: AsJson = False,
    stats: Annotated[
        bool | None,
        typer.Option(
            "--stats/--no-stats",
            help="Print what it took on standard error. Default: when that is a terminal.",
        ),
    ] = None,
) -> None:
    """Continue PROMPT and stream the text as the target decides it.

    On a terminal, accepted draft tokens are green and the target's own plain (not with NO_COLOR).
    """
    if log_probs is not None and not as_json:
        raise typer.BadParameter("only --json has room for them", param_hint="--log-probs")
    text = sys.stdin.read() if prompt == "-" else prompt
    stream = client.stream(
        token_list(text) if token_ids else text,
        generation_config(settings or [], config),
        seed=seed,
        speculation=speculation_config(
            speculation or [], enabled=not no_speculation, prediction=prediction
        ),
        structured_output=structured_output(json_schema, regex, choice),
        request_id=request_id,
        log_probs=log_probs,
        logits_processors=plugins("--logits-processor", logits_processor or []),
        stopping_criteria=plugins("--stopping-criterion", stopping_criterion or []),
        negative_prompt=token_list(negative_prompt)
        if token_ids and negative_prompt is not None
        else negative_prompt,
    )
    with stream:
        if as_json:
            _print_object(stream.collect())
        elif token_ids:
            _print_ids(stream)
        else:
            _print_text(client, stream, prompt=text)
    if stats or (stats is None and not as_json and sys.stderr.isatty()):
        typer.echo(summary(stream.final), err=True)


def _print_object(completion: Completion) -> None:
    first = {
        "text": completion.text,
        "token_ids": completion.token_ids,
        "finish_reason": completion.finish_reason,
    }
    rest = {field.name: getattr(completion, field.name) for field in fields(completion)}
    print_json(first | rest)


def _print_text(client: Client, stream: Stream, *, prompt: str) -> None:
    if (stream.started.effective_config.num_return_sequences or 1) > 1:
        for index, sequence in enumerate(stream.collect().sequences):
            typer.echo(f"[{index}] {visible(sequence.text)}")
        return
    healed = stream.started.healed_prompt
    if healed is not None:  # what it added to the prompt: the text continues that
        typer.echo(visible(healed.text.removeprefix(prompt.strip())), nl=False)
    painter = Painter(client.detokenize)
    try:
        for chunk in stream:
            painter.paint(chunk)
    finally:
        painter.finish()


def _print_ids(stream: Stream) -> None:
    for sequence in stream.collect().sequences:
        typer.echo(" ".join(map(str, sequence.token_ids)))


def summary(completion: Completion) -> str:
    """One line on how it went."""
    usage, drafted = completion.usage, completion.speculation
    parts = [f"{usage.completion_tokens} tokens in {usage.total_seconds:.2f} s"]
    if usage.total_seconds > 0:
        parts.append(f"{usage.completion_tokens / usage.total_seconds:.1f} tokens/s")
    if drafted.num_drafts:
        parts.append(
            f"{drafted.num_accepted_tokens} of {drafted.num_draft_tokens} draft tokens accepted"
        )
        parts.append(f"mean acceptance length {drafted.mean_acceptance_length:.2f}")
    parts.append(f"finish reason {completion.finish_reason or 'unknown'}")
    parts.append(f"seed {completion.seed}")
    return ", ".join(parts)
