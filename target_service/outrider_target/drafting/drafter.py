"""The port to whatever proposes tokens, and the drafter that proposes none.

Everything here is called from the engine thread and must never block it. Knows nothing of gRPC.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from enum import Enum
from typing import NamedTuple, Protocol

from outrider_runtime.sparse_distribution import SparseDistribution

from outrider_target.drafting.silence import Silence
from outrider_target.requests.request import DraftMethod, GenerationRequest


class Draft(NamedTuple):
    """Tokens that may follow the committed ones."""

    token_ids: Sequence[int]
    method: DraftMethod
    """Who proposes them; none when there are none."""
    probabilities: Sequence[float] | None = None
    """For each token, after those before it, how probable its drafter itself takes it to be; None
    when it has no opinion. Not calibrated."""
    distributions: Sequence[SparseDistribution | None] | None = None
    """For each token what it was drawn from; None where nobody drew. It matters where drafts are
    accepted by ratio; nothing that depends on a drawn token may then decide whether it is here."""
    others: Sequence[Sequence[int]] = ()
    """Further paths to verify with it, each from the first draft token on."""

    @property
    def num_tokens(self) -> int:
        """Tokens proposed, those that several paths have in common counted once."""
        if not self.others:
            return len(self.token_ids)
        paths = [self.token_ids, *self.others]
        return len({tuple(path[:end]) for path in paths for end in range(1, len(path) + 1)})

    def cut(self, count: int) -> Draft:
        """Its first tokens, at most so many; other paths only where it stays whole."""
        if count >= len(self.token_ids):
            return self
        if count <= 0:
            return NO_DRAFT
        known = None if self.probabilities is None else self.probabilities[:count]
        drawn = None if self.distributions is None else self.distributions[:count]
        return Draft(self.token_ids[:count], self.method, known, drawn)


NO_DRAFT = Draft((), DraftMethod.NONE)


class Outlook(Enum):
    """What may come of a drafter that has no draft."""

    EXPECTED = "expected"
    """One is on its way, or made in every round."""
    POSSIBLE = "possible"
    """It may have one behind any token, unasked."""
    NONE = "none"
    """None before it is asked."""


class DraftSession(Protocol):
    """A drafter's view of one sequence."""

    @property
    def active(self) -> bool:
        """Whether a drafter stands behind it at the moment."""

    @property
    def outlook(self) -> Outlook:
        """What may come where it proposes nothing."""

    @property
    def silence(self) -> Silence:
        """Why there is no proposal, when there is none."""

    def commit(self, token_ids: Sequence[int], *, window: int) -> None:
        """Tell the tokens decided in a round, and how many are wanted for the next."""

    def waiting_until(self, window: int, now: float) -> float | None:
        """Until when a round should wait for the proposal; None when it need not wait.

        Args:
            window: Draft tokens wanted.
            now: `time.monotonic()`.
        """

    def proposal(self, window: int) -> Draft:
        """The draft, at most `window` tokens long."""

    def close(self) -> None:
        """Forget the sequence."""


class LocalSession(DraftSession, Protocol):
    """A drafter's view of one sequence, inside the target: it never waits."""

    @property
    def evidence(self) -> Hashable:
        """What its present draft rests on: drafts of equal evidence are right about as often.

        Few different values, so that each is soon known.
        """


class Drafter(Protocol):
    """Opens sessions."""

    def open(
        self,
        request: GenerationRequest,
        *,
        sample_index: int,
        token_ids: Sequence[int],
        window: int,
    ) -> DraftSession:
        """Start drafting for a sequence with these committed tokens."""


class NullDrafter:
    """Plain decoding: a drafter, and a session, that never proposes anything."""

    active = False
    outlook = Outlook.NONE
    silence = Silence.NO_DRAFTER

    def open(
        self,
        request: GenerationRequest,
        *,
        sample_index: int,
        token_ids: Sequence[int],
        window: int,
    ) -> DraftSession:
        """It is its own session: there is nothing to remember."""
        return self

    def commit(self, token_ids: Sequence[int], *, window: int) -> None:
        """Nothing to learn."""

    def waiting_until(self, window: int, now: float) -> float | None:
        """Never waits."""
        return None

    def proposal(self, window: int) -> Draft:
        """Never proposes."""
        return NO_DRAFT

    def close(self) -> None:
        """Nothing to forget."""
