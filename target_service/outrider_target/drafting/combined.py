"""Remote drafter and prompt lookup side by side: each round verifies the one worth more.

Prompt lookup is the floor: it costs nothing, is there at once and cannot die. The remote draft is
taken where it is expected to be accepted further, and waited for only as far as it would be.
"""

from __future__ import annotations

from collections.abc import Sequence

from outrider_target.drafting.agreement import SHARED_MEMORY, Agreement
from outrider_target.drafting.drafter import Draft, DraftSession
from outrider_target.drafting.fleet import DraftFleet
from outrider_target.drafting.lookup import LookupSession
from outrider_target.drafting.remote_session import RemoteSession
from outrider_target.requests.request import GenerationRequest


class CombinedSession:
    """One sequence with both drafters."""

    active = True

    def __init__(
        self, remote: RemoteSession, lookup: LookupSession, by_match: dict[int, Agreement]
    ) -> None:
        self._remote = remote
        self._lookup = lookup
        self._shared_by_match = by_match
        self._by_match: dict[int, Agreement] = {}
        self._match = 0
        self._lookup_draft: Sequence[int] = ()

    def commit(self, token_ids: Sequence[int], *, window: int) -> None:
        """Judge both by what was decided, whichever was verified, and ask both for more."""
        if self._lookup_draft:
            self._agreement.observe(self._lookup_draft, token_ids)
        self._lookup.commit(token_ids, window=window)
        self._match = self._lookup.match_size
        self._lookup_draft = self._lookup.proposal(window).token_ids
        at_hand = 0.0
        if self._lookup_draft:
            at_hand = self._agreement.expected_accepted(len(self._lookup_draft))
        self._remote.commit(token_ids, window=window, rival=at_hand)

    def waiting_until(self, window: int, now: float) -> float | None:
        """Until waiting for the remote draft no longer pays."""
        return self._remote.waiting_until(window, now)

    def proposal(self, window: int) -> Draft:
        """The draft that is expected to be accepted further."""
        remote = self._remote.proposal(window)
        lookup = self._lookup.proposal(window)
        if not lookup.token_ids:
            return remote
        if not remote.token_ids:
            return lookup
        worth = self._agreement.expected_accepted(len(lookup.token_ids))
        remote_worth = self._remote.agreement.expected_accepted(len(remote.token_ids))
        return remote if remote_worth >= worth else lookup

    def close(self) -> None:
        """Forget the sequence on both sides."""
        self._remote.close()

    @property
    def _agreement(self) -> Agreement:
        """Of lookup, for matches as long as the current one: longer ones agree more often."""
        if self._match not in self._by_match:
            prior = self._shared_by_match.setdefault(self._match, Agreement(memory=SHARED_MEMORY))
            self._by_match[self._match] = Agreement(prior)
        return self._by_match[self._match]


class CombinedDrafter:
    """Opens sessions with both drafters."""

    def __init__(self, fleet: DraftFleet) -> None:
        self._fleet = fleet
        self._by_match: dict[int, Agreement] = {}

    def open(
        self,
        request: GenerationRequest,
        *,
        sample_index: int,
        token_ids: Sequence[int],
        window: int,
    ) -> DraftSession:
        """Open a session on a link, if there is one, and index the committed tokens."""
        remote = self._fleet.open(
            request, sample_index=sample_index, token_ids=token_ids, window=window
        )
        return CombinedSession(remote, LookupSession(request, token_ids), self._by_match)
