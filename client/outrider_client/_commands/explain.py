"""`outrider explain`: what limits the speed of a deployment, and what would help."""

from __future__ import annotations

from collections.abc import Iterator

from outrider_client._client import Client
from outrider_client._commands.connected import connected
from outrider_client._commands.printing import AsJson, print_json, print_lines
from outrider_client._explanation import Explanation


@connected
def explain(client: Client, as_json: AsJson = False) -> None:
    """Say what limits the speed at the moment, and which settings or drafter would help."""
    found = client.explain()
    if as_json:
        print_json(found)
        return
    print_lines(_figures(found))
    for finding in found.findings:
        print(f"\n{finding.seen}")
        if finding.advice:
            print(f"  {finding.advice}")


def _figures(found: Explanation) -> Iterator[tuple[str, object]]:
    yield "rounds", f"the last {found.num_rounds}, {found.num_tokens} tokens"
    if not found.num_rounds:
        return
    rounds = found.num_rounds
    yield "sequences", f"{found.num_sequence_rounds / rounds:.1f} a round"
    yield "forward", f"{found.forward_seconds / rounds * 1000:.1f} ms a round"
    yield "between", f"{found.between_seconds / rounds * 1000:.1f} ms a round"
    yield "drafts", f"in {found.num_drafts / found.num_sequence_rounds:.0%} of sequence rounds"
    if found.num_draft_tokens:
        rate = found.num_accepted_tokens / found.num_draft_tokens
        yield "accepted", f"{rate:.0%} of {found.num_draft_tokens} draft tokens"
    for reason, count in found.silences.items():
        yield "no draft", f"{count / found.num_sequence_rounds:.0%} {reason.replace('-', ' ')}"
    if found.answer_seconds is not None:
        yield "answers", f"after {found.answer_seconds * 1000:.1f} ms"
    if found.asking_cost_ratio is not None:
        yield "asking", f"rounds take {found.asking_cost_ratio:.2f} times as long"
    if found.speedup_ratio is not None:
        yield "speed-up", f"{found.speedup_ratio:.2f} over plain decoding"
