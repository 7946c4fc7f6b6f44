"""What a form leaves no choice about, drafted for free in front of another drafter's session.

Where only one token may follow, the target itself will choose it: such a draft is always accepted.
Knows nothing of how a form is written.
"""

from __future__ import annotations

from collections.abc import Sequence

from outrider_target.constraints.constraint import Constraint
from outrider_target.drafting.drafter import Draft, DraftSession, Outlook
from outrider_target.drafting.silence import Silence
from outrider_target.requests.request import DraftMethod


class ForcedSession:
    """One sequence whose text has a form.

    Args:
        inner: Its session with the drafter that it has anyway, if only one that never proposes.
        constraint: How far it has come in the form; moved on before each `commit`.
        window: Draft tokens wanted for the next round.
    """

    def __init__(self, inner: DraftSession, constraint: Constraint, *, window: int) -> None:
        self._inner = inner
        self._constraint = constraint
        self._forced = constraint.forced(window)

    outlook = Outlook.EXPECTED

    @property
    def silence(self) -> Silence:
        """The other drafter's reason, if there is another: nothing is forced."""
        other = self._inner.silence
        return Silence.NOTHING_PROPOSED if other is Silence.NO_DRAFTER else other

    @property
    def active(self) -> bool:
        """Whether a drafter stands behind it: where nothing is forced, the form does not count."""
        return self._inner.active

    def commit(self, token_ids: Sequence[int], *, window: int) -> None:
        """Find what is forced now."""
        self._forced = self._constraint.forced(window)
        self._inner.commit(token_ids, window=window)

    def waiting_until(self, window: int, now: float) -> float | None:
        """Nobody waits where something is at hand that is certain to be accepted."""
        return None if self._forced else self._inner.waiting_until(window, now)

    def proposal(self, window: int) -> Draft:
        """The forced tokens, or the other draft where it says the same and more."""
        forced, other = self._forced[:window], self._inner.proposal(window)
        if not forced:
            return other
        if len(other.token_ids) > len(forced) and list(other.token_ids[: len(forced)]) == forced:
            return other
        return Draft(forced, DraftMethod.GRAMMAR)

    def close(self) -> None:
        """Forget the sequence."""
        self._inner.close()
