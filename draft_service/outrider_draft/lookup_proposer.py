"""Prompt lookup as a proposer: no model, no torch. Proposes a whole chain in one step."""

from __future__ import annotations

from collections.abc import Sequence

from outrider_runtime.prompt_lookup import PromptLookup

from outrider_draft.line import Line, Proposed
from outrider_draft.proposer import Description, Outcome, Share
from outrider_draft.session import Session
from outrider_draft.settings import LookupSettings
from outrider_draft.updates import SessionKey


class LookupProposer:
    """Continues a sequence with what followed the same tokens earlier in it."""

    def __init__(self, settings: LookupSettings) -> None:
        self._settings = settings
        self._lookups: dict[SessionKey, PromptLookup] = {}
        self._description = Description(kind="prompt-lookup")

    @property
    def description(self) -> Description:
        """What it is."""
        return self._description

    @property
    def rows_are_cheap(self) -> bool:
        """A lookup is."""
        return True

    def pending(self, line: Line) -> int:
        """Always one: looking up costs the same whatever is new."""
        return 1

    def extend(self, shares: Sequence[Share]) -> list[Outcome]:
        """Look up each session's chain to the end."""
        return [self._look_up(share.session) for share in shares]

    def rewind(self, key: SessionKey, length: int) -> None:
        """Forget tokens that are no longer true. The chain is never indexed, so this is rare."""
        if (lookup := self._lookups.get(key)) is not None:
            lookup.truncate(length)

    def adopt(self, key: SessionKey, line: SessionKey) -> None:
        """Nothing to learn: it has no side lines."""

    def holds(self, key: SessionKey) -> bool:
        """Whether there is an index of the session."""
        return key in self._lookups

    def forget(self, key: SessionKey) -> None:
        """Drop a session's index."""
        self._lookups.pop(key, None)

    def _look_up(self, session: Session) -> Outcome:
        lookup = self._lookups.get(session.key)
        if lookup is None:
            size = session.request.max_matching_ngram_size
            lookup = self._lookups[session.key] = PromptLookup(
                max_ngram_size=size or self._settings.max_matching_ngram_size,
                rule=self._settings.rule,
            )
        committed = session.tree.token_ids
        lookup.extend(committed[len(lookup) :])
        token_ids = lookup.candidates(
            session.room(),
            drafted=[node.token_id for node in session.chain],
            eos_token_ids=session.request.parameters.eos_token_ids,
        )
        # A copy is not a probability: 0 keeps the confidence threshold from stopping it.
        return Outcome([Proposed(token_id, 0.0) for token_id in token_ids], exhausted=True)
