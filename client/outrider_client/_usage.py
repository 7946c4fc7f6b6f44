"""The numbers at the end of a request: what it consumed, and what speculation did for it.

Knows nothing of calls.
"""

from __future__ import annotations

from dataclasses import dataclass

from outrider.v1 import generation_pb2, speculation_pb2


@dataclass(frozen=True, slots=True)
class Usage:
    """What a request consumed. The times of a partial completion are 0."""

    prompt_tokens: int
    """Length of the prompt."""

    completion_tokens: int
    """Generated tokens of all sequences."""

    queue_seconds: float = 0.0
    """From arrival to admission into the batch."""

    time_to_first_token_seconds: float = 0.0
    """From arrival to the first token."""

    total_seconds: float = 0.0
    """From arrival to the end."""

    num_preemptions: int = 0
    """How often a sequence was preempted for lack of memory."""

    cached_prompt_tokens: int = 0
    """Tokens of the prompt that earlier requests had left in the cache."""

    @classmethod
    def from_message(cls, message: generation_pb2.Usage) -> Usage:
        """The usage in a message."""
        return cls(
            prompt_tokens=message.prompt_tokens,
            completion_tokens=message.completion_tokens,
            queue_seconds=message.queue_seconds,
            time_to_first_token_seconds=message.time_to_first_token_seconds,
            total_seconds=message.total_seconds,
            num_preemptions=message.num_preemptions,
            cached_prompt_tokens=message.cached_prompt_tokens,
        )


@dataclass(frozen=True, slots=True)
class SpeculationRound:
    """One verification round of one sequence."""

    num_draft_tokens: int
    """Draft tokens verified."""

    num_accepted_tokens: int
    """Draft tokens accepted."""


@dataclass(frozen=True, slots=True)
class DrafterStats:
    """What one drafter contributed."""

    method: str
    """"remote", "prompt-lookup", "suffix", "prediction", "early-exit", or "grammar": what a form
    left no choice about."""

    num_drafts: int
    """Rounds that verified a draft of it."""

    num_draft_tokens: int
    """Draft tokens of it that were verified."""

    num_accepted_tokens: int
    """Draft tokens of it that were accepted and emitted."""


@dataclass(frozen=True, slots=True)
class SpeculationStats:
    """What speculation did; names and meaning as in vLLM."""

    num_drafts: int = 0
    """Rounds that verified at least one draft token."""

    num_draft_tokens: int = 0
    """Draft tokens verified."""

    num_accepted_tokens: int = 0
    """Draft tokens accepted and emitted."""

    num_accepted_tokens_per_pos: tuple[int, ...] = ()
    """Accepted tokens by their position in the draft, position 0 first."""

    mean_acceptance_length: float = 0.0
    """1 + accepted / drafts; 0 when nothing was drafted."""

    draft_acceptance_rate: float = 0.0
    """Accepted / draft tokens; 0 when nothing was drafted."""

    num_rounds: int = 0
    """Target forward passes that produced tokens, drafted or plain."""

    num_plain_rounds: int = 0
    """Rounds that had a drafter, found nothing to verify, and decoded plainly."""

    rounds: tuple[SpeculationRound, ...] = ()
    """The rounds one by one; only with `SpeculationConfig(report_rounds=True)`."""

    drafters: tuple[DrafterStats, ...] = ()
    """The above by drafter, those that drafted anything."""

    @classmethod
    def from_message(cls, message: speculation_pb2.SpeculationStats) -> SpeculationStats:
        """The statistics in a message."""
        return cls(
            num_drafts=message.num_drafts,
            num_draft_tokens=message.num_draft_tokens,
            num_accepted_tokens=message.num_accepted_tokens,
            num_accepted_tokens_per_pos=tuple(message.num_accepted_tokens_per_pos),
            mean_acceptance_length=message.mean_acceptance_length,
            draft_acceptance_rate=message.draft_acceptance_rate,
            num_rounds=message.num_rounds,
            num_plain_rounds=message.num_plain_rounds,
            rounds=tuple(
                SpeculationRound(each.num_draft_tokens, each.num_accepted_tokens)
                for each in message.rounds
            ),
            drafters=tuple(
                DrafterStats(
                    speculation_pb2.DraftMethod.Name(each.method)
                    .removeprefix("DRAFT_METHOD_")
                    .lower()
                    .replace("_", "-"),
                    each.num_drafts,
                    each.num_draft_tokens,
                    each.num_accepted_tokens,
                )
                for each in message.drafters
            ),
        )
