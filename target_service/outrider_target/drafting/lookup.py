"""Prompt lookup inside the target service: no link, no model, always answered at once."""

from __future__ import annotations

from collections.abc import Sequence

from outrider_runtime.prompt_lookup import LookupRule, PromptLookup

from outrider_target.drafting.drafter import NO_DRAFT, Draft, DraftSession, Outlook
from outrider_target.drafting.silence import Silence
from outrider_target.requests.request import DraftMethod, GenerationRequest


class LookupSession:
    """One sequence's index of its own text."""

    active = True
    outlook = Outlook.POSSIBLE
    silence = Silence.NOTHING_PROPOSED

    def __init__(self, request: GenerationRequest, token_ids: Sequence[int]) -> None:
        speculation = request.speculation
        self._lookup = PromptLookup(
            token_ids,
            max_ngram_size=speculation.max_matching_ngram_size,
            rule=speculation.lookup_rule,
        )
        # transformers stops short of the end; a copy that goes past it is cut by the verification.
        self._stops = (
            frozenset(request.parameters.eos_token_ids)
            if speculation.lookup_rule is LookupRule.FIRST
            else frozenset()
        )

    def commit(self, token_ids: Sequence[int], *, window: int) -> None:
        """Index the new tokens."""
        self._lookup.extend(token_ids)

    def waiting_until(self, window: int, now: float) -> float | None:
        """Never waits."""
        return None

    def proposal(self, window: int) -> Draft:
        """What followed the last tokens when they occurred before."""
        token_ids = self._lookup.candidates(window, eos_token_ids=self._stops)
        return Draft(token_ids, DraftMethod.PROMPT_LOOKUP) if token_ids else NO_DRAFT

    @property
    def evidence(self) -> int:
        """Tokens at the end of the sequence that occurred before; 0 when nothing can be proposed.

        At most the request's `max_matching_ngram_size`.
        """
        return self._lookup.match_size

    def close(self) -> None:
        """Nothing to forget."""


class LookupDrafter:
    """Opens lookup sessions."""

    def open(
        self,
        request: GenerationRequest,
        *,
        sample_index: int,
        token_ids: Sequence[int],
        window: int,
    ) -> DraftSession:
        """Index the committed tokens."""
        return LookupSession(request, token_ids)
