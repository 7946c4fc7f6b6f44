"""Counters of speculation, with vLLM's names and meaning. Knows nothing of drafters."""

from __future__ import annotations

from dataclasses import dataclass, field

from outrider_target.requests.request import DraftMethod


@dataclass(slots=True)
class DrafterCounters:
    """What one drafter contributed."""

    num_drafts: int = 0
    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0

    def add(self, other: DrafterCounters) -> None:
        """Add another sequence's counters to these."""
        self.num_drafts += other.num_drafts
        self.num_draft_tokens += other.num_draft_tokens
        self.num_accepted_tokens += other.num_accepted_tokens


@dataclass(slots=True)
class SpeculationCounters:
    """What speculation did, for a sequence or for the whole server.

    `num_accepted_tokens` counts what was emitted: accepted tokens behind a stop are not in it.
    """

    num_drafts: int = 0
    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0
    num_accepted_tokens_per_pos: list[int] = field(default_factory=list)
    num_rounds: int = 0
    num_plain_rounds: int = 0
    rounds: list[tuple[int, int]] = field(default_factory=list)
    by_method: dict[DraftMethod, DrafterCounters] = field(default_factory=dict)

    @property
    def mean_acceptance_length(self) -> float:
        """1 + accepted / drafts; 0 when nothing was drafted."""
        return 1 + self.num_accepted_tokens / self.num_drafts if self.num_drafts else 0.0

    @property
    def draft_acceptance_rate(self) -> float:
        """Accepted / drafted tokens; 0 when nothing was drafted."""
        return self.num_accepted_tokens / self.num_draft_tokens if self.num_draft_tokens else 0.0

    def observe(
        self,
        num_draft_tokens: int,
        num_accepted: int,
        *,
        method: DraftMethod,
        has_drafter: bool,
        keep_round: bool,
        num_steps: int = 1,
    ) -> None:
        """Count one round of one sequence.

        Args:
            num_draft_tokens: Draft tokens verified.
            num_accepted: Those accepted and emitted.
            method: Whose draft it was.
            has_drafter: Whether there was a drafter that could have proposed something.
            keep_round: Whether to list the round in `rounds`.
            num_steps: Steps of plain decoding in one go: so many rounds.
        """
        self.num_rounds += num_steps
        if num_draft_tokens:
            self.num_drafts += 1
            self.num_draft_tokens += num_draft_tokens
            self.num_accepted_tokens += num_accepted
            share = self.by_method.get(method)
            if share is None:
                share = self.by_method[method] = DrafterCounters()
            share.num_drafts += 1
            share.num_draft_tokens += num_draft_tokens
            share.num_accepted_tokens += num_accepted
            per_pos = self.num_accepted_tokens_per_pos
            per_pos.extend([0] * (num_accepted - len(per_pos)))
            for position in range(num_accepted):
                per_pos[position] += 1
        elif has_drafter:
            self.num_plain_rounds += num_steps
        if keep_round:
            self.rounds += [(num_draft_tokens, num_accepted)] * num_steps

    def add(self, other: SpeculationCounters) -> None:
        """Add another sequence's counters to these."""
        self.num_drafts += other.num_drafts
        self.num_draft_tokens += other.num_draft_tokens
        self.num_accepted_tokens += other.num_accepted_tokens
        self.num_rounds += other.num_rounds
        self.num_plain_rounds += other.num_plain_rounds
        self.rounds.extend(other.rounds)
        for method, share in other.by_method.items():
            self.by_method.setdefault(method, DrafterCounters()).add(share)
        per_pos = self.num_accepted_tokens_per_pos
        per_pos.extend([0] * (len(other.num_accepted_tokens_per_pos) - len(per_pos)))
        for position, count in enumerate(other.num_accepted_tokens_per_pos):
            per_pos[position] += count
