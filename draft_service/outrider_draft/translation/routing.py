"""One drafter for targets with the draft model's tokenizer and for those with others.

Knows nothing of models: it asks the proposer whose session it is.
"""

from __future__ import annotations

from collections.abc import Sequence

from outrider_draft.line import Line
from outrider_draft.proposer import Description, Outcome, Proposer, Share
from outrider_draft.updates import SessionKey


class RoutingProposer:
    """Sends each session to the proposer that understands its target's ids."""

    def __init__(self, own: Proposer, translating: Proposer) -> None:
        self._own = own
        self._translating = translating

    @property
    def description(self) -> Description:
        """What the draft model is, and whose ids it translates."""
        return self._translating.description

    @property
    def rows_are_cheap(self) -> bool:
        """Both run the same model."""
        return self._own.rows_are_cheap

    def pending(self, line: Line) -> int:
        """How many tokens it has yet to see."""
        return self._of(line).pending(line)

    def extend(self, shares: Sequence[Share]) -> list[Outcome]:
        """Do one step of each that has sessions in it.

        Raises:
            OutOfRoom: One of them does not fit; nothing was lost that would not be done again.
        """
        outcomes: dict[SessionKey, Outcome] = {}
        for proposer in (self._own, self._translating):
            part = [share for share in shares if self._of(share.line) is proposer]
            if part:
                found = proposer.extend(part)
                keys = [share.line.key for share in part]
                outcomes |= zip(keys, found, strict=True)
        return [outcomes[share.line.key] for share in shares]

    def rewind(self, key: SessionKey, length: int) -> None:
        """Learn that tokens from `length` on are no longer what they were."""
        self._own.rewind(key, length)
        self._translating.rewind(key, length)

    def adopt(self, key: SessionKey, line: SessionKey) -> None:
        """Learn that a session goes on with one of its side lines."""
        self._own.adopt(key, line)
        self._translating.adopt(key, line)

    def holds(self, key: SessionKey) -> bool:
        """Whether forgetting a session would make room."""
        return self._own.holds(key) or self._translating.holds(key)

    def forget(self, key: SessionKey) -> None:
        """Drop whatever is held for a session."""
        self._own.forget(key)
        self._translating.forget(key)

    def _of(self, line: Line) -> Proposer:
        return self._translating if line.request.tokenizer else self._own
