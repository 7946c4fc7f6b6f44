"""The command `outrider-conformance`: tries the rules of the draft protocol on a drafter."""

from __future__ import annotations

import asyncio
from typing import Annotated

import grpc
import typer
from rich.console import Console

from outrider_conformance.report import Outcome, judge
from outrider_conformance.rules import RULES
from outrider_conformance.target import TIMEOUT
from outrider_conformance.trial import trial

console = Console()


def conformance(
    address: Annotated[str, typer.Argument(help="Where the drafter listens, as host:port.")],
    timeout: Annotated[
        float, typer.Option(min=0.1, help="Seconds after which a missing answer is a violation.")
    ] = TIMEOUT,
) -> None:
    """Try whether a drafter keeps to the draft protocol, rule by rule; exits with 1 if not."""
    try:
        outcomes = asyncio.run(_try_all(address, timeout))
    except grpc.aio.AioRpcError as error:
        console.print(f"[red]{address} does not answer `Describe`:[/red] {error.details()}")
        raise typer.Exit(2) from None
    broken = sum(outcome.violation is not None for outcome in outcomes)
    kept = len(outcomes) - broken
    console.print(f"\n{kept} of {len(outcomes)} rules kept" + (f", {broken} broken" * bool(broken)))
    if broken:
        raise typer.Exit(1)


async def _try_all(address: str, timeout: float) -> list[Outcome]:
    outcomes = []
    async with trial(address, timeout=timeout) as running:
        drafter = running.drafter
        console.print(f"[bold]{drafter.kind}[/bold] {drafter.model_id} at {address}\n")
        for rule in RULES:
            outcome = await judge(rule, running)
            outcomes.append(outcome)
            mark = "[green]kept  [/green]" if outcome.violation is None else "[red]BROKEN[/red]"
            console.print(f"{mark}  {outcome.rule}", highlight=False)
            if outcome.violation is not None:
                console.print(f"        {outcome.violation}", style="red", markup=False)
    return outcomes


def main() -> None:
    """Run the command."""
    typer.run(conformance)


if __name__ == "__main__":
    main()
