"""What a server says of what limits its speed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from outrider.v1 import explanation_pb2


class Finding(NamedTuple):
    """Something that limits the speed, or shows that nothing does."""

    seen: str
    """In words, with figures."""

    advice: str
    """What would help; empty when nothing needs to be done."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """What limits a server's speed, from its last rounds, at most 512.

    A sequence round is one sequence's part of a round.
    """

    num_rounds: int
    """Rounds that the figures are about."""

    num_sequence_rounds: int
    """Sequence rounds."""

    num_drafts: int
    """Those that verified a draft."""

    num_draft_tokens: int
    """Draft tokens verified."""

    num_accepted_tokens: int
    """Draft tokens accepted."""

    num_tokens: int
    """Tokens decided."""

    forward_seconds: float
    """Seconds in which the model ran, or tokens were chosen."""

    between_seconds: float
    """Seconds between, while sequences ran."""

    silences: dict[str, int]
    """Sequence rounds without a draft, by reason: no-drafter, no-link, not-worth-asking, late,
    nothing-proposed, not-worth-verifying, measuring."""

    answer_seconds: float | None
    """Usual seconds from a question to its answer at the fastest draft service."""

    asking_cost_ratio: float | None
    """How many times as long rounds take in which draft services are asked, once measured."""

    speedup_ratio: float | None
    """Tokens a second over those of plain decoding, once measured."""

    findings: tuple[Finding, ...]
    """What limits the speed and what would help, what matters most first."""

    @classmethod
    def from_message(cls, message: explanation_pb2.ExplainResponse) -> Explanation:
        """The explanation in a message."""
        return cls(
            num_rounds=message.num_rounds,
            num_sequence_rounds=message.num_sequence_rounds,
            num_drafts=message.num_drafts,
            num_draft_tokens=message.num_draft_tokens,
            num_accepted_tokens=message.num_accepted_tokens,
            num_tokens=message.num_tokens,
            forward_seconds=message.forward_seconds,
            between_seconds=message.between_seconds,
            silences={_reason(one.reason): one.num_sequence_rounds for one in message.silences},
            answer_seconds=message.answer_seconds if message.HasField("answer_seconds") else None,
            asking_cost_ratio=message.asking_cost_ratio
            if message.HasField("asking_cost_ratio")
            else None,
            speedup_ratio=message.speedup_ratio if message.HasField("speedup_ratio") else None,
            findings=tuple(Finding(one.seen, one.advice) for one in message.findings),
        )


def _reason(value: explanation_pb2.DraftSilence.ValueType) -> str:
    """The reason as a word; newer servers may know more of them."""
    if value not in explanation_pb2.DraftSilence.values():
        return f"reason-{value}"
    name = explanation_pb2.DraftSilence.Name(value).removeprefix("DRAFT_SILENCE_")
    return name.lower().replace("_", "-")
