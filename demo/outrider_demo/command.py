"""The command `outrider demo`: two services, one completion, and what the drafter was worth."""

from __future__ import annotations

import statistics
import time
from typing import Annotated

import typer
from outrider_client import Client, Completion, DraftLinkState, GenerationConfig, SpeculationConfig
from rich.console import Console
from rich.table import Table
from rich.text import Text

from outrider_demo import DRAFT_DIR, TARGET_DIR
from outrider_demo.processes import Service, ServiceFailed

_ACCEPTED = "bold green"
_PROMPT = "dim"
_RUNS = 5
_READY_SECONDS = 30.0
_REMOTE = SpeculationConfig(method="remote")
_PLAIN = "plain decoding"
_WAYS = {
    _PLAIN: SpeculationConfig(enabled=False),
    "with the draft service alone": _REMOTE,
    "with prompt lookup beside it (default)": None,
}


def demo(
    prompt: Annotated[str, typer.Argument(help="Text to continue.")] = "def main(",
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens to generate.")] = 160,
    sample: Annotated[bool, typer.Option(help="Sample instead of greedy decoding.")] = False,
    temperature: Annotated[float, typer.Option(help="Of sampling.")] = 0.7,
    seed: Annotated[int, typer.Option(min=0, help="Of sampling.")] = 7,
) -> None:
    """Watch a target service being fed by a separate draft service, with the shipped models."""
    console = Console(highlight=False)
    config = GenerationConfig(max_new_tokens=max_new_tokens, do_sample=sample)
    if sample:
        config.temperature = temperature
    try:
        with Service("outrider_draft", ["--model", str(DRAFT_DIR), "--threads", "1"]) as draft:
            console.print(draft.announcement, style="dim")
            arguments = ["--model", str(TARGET_DIR), "--threads", "1", "--draft", draft.address]
            with Service("outrider_target", arguments) as target:
                console.print(target.announcement, style="dim")
                with Client(target.address, timeout=120) as client:
                    _wait_for_draft_link(client)
                    final = _stream(console, client, prompt, config, seed)
                    _show_statistics(console, final)
                    _show_speed(console, client, prompt, config, seed)
    except ServiceFailed as failure:
        console.print(str(failure), style="red")
        raise typer.Exit(1) from None
    console.print("both services stopped", style="dim")


def _wait_for_draft_link(client: Client) -> None:
    deadline = time.monotonic() + _READY_SECONDS
    while True:
        (link,) = client.server_info().draft_links
        if link.state is DraftLinkState.READY:
            return
        if time.monotonic() > deadline:
            raise ServiceFailed(f"the target does not reach the drafter: {link.reason}")
        time.sleep(0.05)


def _stream(
    console: Console, client: Client, prompt: str, config: GenerationConfig, seed: int
) -> Completion:
    """Print the completion as it comes: accepted draft tokens apart from the target's own.

    The draft service drafts alone here, to be seen at work.
    """
    legend = Text.assemble(
        ("\nprompt", _PROMPT),
        " · ",
        ("accepted from the draft service", _ACCEPTED),
        " · the target's own\n",
    )
    console.print(legend)
    console.print(Text(prompt, style=_PROMPT), end="")
    with client.stream(prompt, config, seed=seed, speculation=_REMOTE) as stream:
        for chunk in stream:
            # A chunk is a round: accepted tokens first, then one of the target's own.
            accepted = [t for t, d in zip(chunk.token_ids, chunk.drafted, strict=True) if d]
            drafted_text = client.detokenize(accepted) if accepted else ""
            split = len(drafted_text) if chunk.text.startswith(drafted_text) else 0
            console.print(Text(chunk.text[:split], style=_ACCEPTED), end="")
            console.print(Text(chunk.text[split:]), end="")
        console.print("\n")
        return stream.final


def _show_statistics(console: Console, final: Completion) -> None:
    speculation = final.speculation
    table = Table(title="Speculation", title_justify="left", show_header=False)
    rows = {
        "tokens generated": f"{final.usage.completion_tokens}",
        "target forwards": f"{speculation.num_rounds}",
        "drafts verified": f"{speculation.num_drafts}",
        "draft tokens accepted": f"{speculation.num_accepted_tokens} of "
        f"{speculation.num_draft_tokens} ({speculation.draft_acceptance_rate:.0%})",
        "tokens per verified draft": f"{speculation.mean_acceptance_length:.2f}",
        "accepted by position": " ".join(map(str, speculation.num_accepted_tokens_per_pos)),
        "time to first token": f"{final.usage.time_to_first_token_seconds * 1000:.0f} ms",
        "finish reason": str(final.finish_reason),
    }
    for name, value in rows.items():
        table.add_row(name, value)
    console.print(table)


def _show_speed(
    console: Console, client: Client, prompt: str, config: GenerationConfig, seed: int
) -> None:
    """Measure with and without drafters, in turns; the text must be the same."""
    speeds: dict[str, list[float]] = {name: [] for name in _WAYS}
    token_ids: set[tuple[int, ...]] = set()
    for _ in range(_RUNS):
        for name, speculation in _WAYS.items():
            started = time.perf_counter()
            completion = client.generate(prompt, config, seed=seed, speculation=speculation)
            seconds = time.perf_counter() - started
            speeds[name].append(len(completion.token_ids) / seconds)
            token_ids.add(tuple(completion.token_ids))
    table = Table(title=f"Speed, median of {_RUNS} runs in turns", title_justify="left")
    for column in ("", "tokens/s", "ratio"):
        table.add_column(column, justify="right" if column else "left")
    for name, own in speeds.items():
        ratio = statistics.median(
            fast / plain for fast, plain in zip(own, speeds[_PLAIN], strict=True)
        )
        table.add_row(name, f"{statistics.median(own):.0f}", f"{ratio:.2f}")
    console.print(table)
    if len(token_ids) != 1:
        console.print("the texts differ: this is a bug, please report it", style="red")
        raise typer.Exit(1)
    console.print("the text is the same with and without drafters, token for token\n")
