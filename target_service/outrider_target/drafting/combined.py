"""Several drafters side by side: each round verifies the draft that is worth most.

Those inside the target (prompt lookup, suffix tree, prediction) are the floor: they cost little,
are there at once and cannot die. The remote draft is taken where it is expected to be accepted
further, and waited for only as far as it would be. What a draft is worth is learned from what was
decided, whichever draft was verified: by drafter, and by what the draft rests on.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

from outrider_runtime.recent_texts import RecentTexts

from outrider_target.drafting.agreement import SHARED_MEMORY, Agreement, num_agreeing
from outrider_target.drafting.drafter import NO_DRAFT, Draft, DraftSession, LocalSession, Outlook
from outrider_target.drafting.lookup import LookupSession
from outrider_target.drafting.prediction import PredictionSession
from outrider_target.drafting.remote.fleet import DraftFleet
from outrider_target.drafting.remote.remote_session import RemoteSession
from outrider_target.drafting.silence import Silence
from outrider_target.drafting.suffix import SuffixSession
from outrider_target.requests.request import GenerationRequest

Experience = dict[Hashable, Agreement]
"""How often drafts were right, of all sequences: by drafter and evidence."""


@dataclass(slots=True)
class Candidate:
    """A drafter inside the target, its present draft, and how far such drafts were right."""

    session: LocalSession
    shared: Experience
    own: Experience = field(default_factory=dict)
    draft: Draft = NO_DRAFT
    agreement: Agreement | None = None
    """For the present draft; None without one."""
    worth: float = 0.0
    """Tokens of the present draft that are expected to be accepted."""

    def judge(self, token_ids: Sequence[int]) -> None:
        """Compare the draft with what was decided, whichever draft was verified."""
        if self.agreement is not None:
            self.agreement.observe(self.draft.token_ids, token_ids)

    def look(self, window: int) -> None:
        """Take the drafter's present draft."""
        self.draft = self.session.proposal(window)
        self.agreement, self.worth = None, 0.0
        if self.draft.token_ids:
            key = self.draft.method, self.session.evidence
            self.agreement = self.own.get(key)
            if self.agreement is None:
                prior = self.shared.setdefault(key, Agreement(memory=SHARED_MEMORY))
                self.agreement = self.own[key] = Agreement(prior)
            self.worth = self.agreement.expected_accepted(len(self.draft.token_ids))


class CombinedSession:
    """One sequence with all its drafters."""

    active = True

    def __init__(
        self,
        remote: RemoteSession,
        local: Sequence[LocalSession],
        experience: Experience,
        *,
        window: int,
    ) -> None:
        self._remote = remote
        self._local = [Candidate(session, experience) for session in local]
        self._window = 0
        self._look(window)

    def commit(self, token_ids: Sequence[int], *, window: int) -> None:
        """Judge all by what was decided, and ask all for more."""
        agreed = num_agreeing(self._at_hand.draft.token_ids, token_ids)
        for candidate in self._local:
            candidate.judge(token_ids)
            candidate.session.commit(token_ids, window=window)
        self._look(window)
        self._remote.commit(
            token_ids, window=window, rival=self._at_hand.worth, rival_accepted=agreed
        )

    def waiting_until(self, window: int, now: float) -> float | None:
        """Until waiting for the remote draft no longer pays."""
        return self._remote.waiting_until(window, now)

    def proposal(self, window: int) -> Draft:
        """The draft that is expected to be accepted furthest."""
        if window != self._window:
            self._look(window)
        remote = self._remote.proposal(window)
        worth = self._remote.agreement.expected_accepted(len(remote.token_ids))
        return self._at_hand.draft if self._at_hand.worth > worth else remote

    @property
    def outlook(self) -> Outlook:
        """Those inside the target may find something behind any token."""
        return Outlook.POSSIBLE if self._remote.outlook is Outlook.NONE else Outlook.EXPECTED

    @property
    def silence(self) -> Silence:
        """Why there is no proposal, when there is none: those inside the target found nothing."""
        remote = self._remote.silence
        return Silence.NOTHING_PROPOSED if remote is Silence.NO_LINK else remote

    def close(self) -> None:
        """Forget the sequence everywhere."""
        self._remote.close()
        for candidate in self._local:
            candidate.session.close()

    def _look(self, window: int) -> None:
        self._window = window
        for candidate in self._local:
            candidate.look(window)
        self._at_hand = max(self._local, key=_worth)


def _worth(candidate: Candidate) -> float:
    return candidate.worth


class CombinedDrafter:
    """Opens sessions with all drafters."""

    def __init__(self, fleet: DraftFleet, texts: RecentTexts) -> None:
        self._fleet = fleet
        self._texts = texts
        self._experience: Experience = {}

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
        local: list[LocalSession] = [
            LookupSession(request, token_ids),
            SuffixSession(request, token_ids, self._texts),
        ]
        if request.speculation.prediction:
            local.append(PredictionSession(request, token_ids))
        return CombinedSession(remote, local, self._experience, window=window)
