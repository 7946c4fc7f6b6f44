"""The suffix tree as a proposer: no model, no torch. Proposes a whole chain in one step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import takewhile

from outrider_runtime.recent_texts import RecentTexts
from outrider_runtime.suffix_lookup import SuffixLookup

from outrider_draft.line import Line, Proposed
from outrider_draft.proposer import Description, Outcome, Share
from outrider_draft.session import Session
from outrider_draft.settings import SuffixSettings
from outrider_draft.updates import SessionKey


class SuffixProposer:
    """Continues a sequence with what followed the same tokens, in it or in its tenant's texts."""

    def __init__(self, settings: SuffixSettings) -> None:
        self._texts = RecentTexts(settings.cache_tokens)
        self._lookups: dict[SessionKey, SuffixLookup] = {}
        self._description = Description(kind="suffix")

    @property
    def description(self) -> Description:
        """What it is."""
        return self._description

    @property
    def rows_are_cheap(self) -> bool:
        """A look into the tree is."""
        return True

    def pending(self, line: Line) -> int:
        """Always one: what is new is indexed in passing."""
        return 1

    def extend(self, shares: Sequence[Share]) -> list[Outcome]:
        """Look up each session's chain to the end."""
        return [self._look_up(share.session) for share in shares]

    def rewind(self, key: SessionKey, length: int) -> None:
        """Forget a session of which committed tokens changed. The chain is never indexed."""
        lookup = self._lookups.get(key)
        if lookup is not None and length < len(lookup):
            del self._lookups[key]

    def adopt(self, key: SessionKey, line: SessionKey) -> None:
        """Nothing to learn: it has no side lines."""

    def holds(self, key: SessionKey) -> bool:
        """Whether there is an index of the session."""
        return key in self._lookups

    def forget(self, key: SessionKey) -> None:
        """Drop a session's index; its output stays for its tenant's next sessions."""
        if (lookup := self._lookups.pop(key, None)) is not None:
            lookup.close()

    def _look_up(self, session: Session) -> Outcome:
        committed, request = session.tree.token_ids, session.request
        lookup = self._lookups.get(session.key)
        if lookup is None:
            lookup = self._lookups[session.key] = SuffixLookup(
                self._texts,
                request.tenant,
                committed,
                num_prompt_tokens=request.num_prompt_tokens,
            )
        lookup.extend(committed[len(lookup) :])
        found = lookup.speculate(session.room(), drafted=[node.token_id for node in session.chain])
        known = takewhile(
            lambda pair: pair[0] < request.vocab_size,
            zip(found.token_ids, found.probabilities, strict=True),
        )
        proposed = [Proposed(token_id, math.log(share)) for token_id, share in known]
        return Outcome(proposed, exhausted=True)
