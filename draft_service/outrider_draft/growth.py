"""Which lines grow in the next step. Pure.

Windows come before run-ahead and guesses beside the chains: what a target waits for precedes what
it may want later. Within each, the most probable frontier comes first, because it is the most
likely to be accepted; waiting adds to a frontier's worth, so that an improbable one is late but
never forgotten. The more sessions grow, the fewer guesses there are beside their chains.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from outrider_draft.proposer import Share
from outrider_draft.session import Session
from outrider_draft.settings import StepSettings
from outrider_draft.side_line import SideLine

SHORT_CATCH_UP = 64
"""Up to so many rows a line simply takes part; one with more to catch up with shares a budget
with its like, so that a long prompt delays the others by a bounded amount."""

WAIT_WORTH = 0.5
"""What a step of waiting adds to a frontier's log-probability."""


class Want(NamedTuple):
    """A line that may grow."""

    session: Session
    pending: int
    """Rows it needs before its next token."""
    side: SideLine | None = None
    """Which one; None: the chain."""

    @property
    def below_window(self) -> bool:
        """Whether a target may be waiting for it."""
        return self.side is None and self.session.below_window

    @property
    def worth(self) -> float:
        """How much its next token is worth, beside others of its kind."""
        line = self.side or self.session
        return line.path_log_prob + WAIT_WORTH * line.waited


def fan_out(granted: int, num_sessions: int, rows: int) -> int:
    """Guesses for one position, the first included, when so many sessions share a step's rows."""
    return max(1, min(granted, rows // max(1, num_sessions)))


def plan(wanting: Sequence[Want], settings: StepSettings, *, rows_are_cheap: bool) -> list[Share]:
    """Share out a step.

    Args:
        wanting: Lines that may grow.
        settings: Most sessions, most rows for long catch-ups and for guesses beside the chains.
        rows_are_cheap: Whether run-ahead may fill up a step in which others are below their window.
            Where each row costs, it waits.

    Returns:
        Shares in order of precedence; empty only when nobody wants to grow.
    """
    ordered = sorted(wanting, key=lambda want: (not want.below_window, -want.worth))
    if not rows_are_cheap and ordered and ordered[0].below_window:
        ordered = [want for want in ordered if want.below_window]
    num_sessions = sum(want.side is None for want in wanting)
    shares: list[Share] = []
    long_rows = settings.max_num_batched_tokens
    for session, pending, side in ordered:
        if len(shares) >= settings.max_num_seqs:
            break
        if side is not None and shares and len(shares) >= settings.enumeration_rows:
            continue
        rows = pending
        if pending > SHORT_CATCH_UP:
            rows = min(pending, long_rows)
            long_rows -= rows
        if rows:
            guesses = session.limits.fan_out
            if guesses > 1:
                guesses = fan_out(guesses, num_sessions, settings.enumeration_rows)
            tokens = max(1, session.num_missing) if side is None else 1
            shares.append(Share(session, rows, side, tokens, guesses - 1))
    return shares


def age(wanting: Sequence[Want], shares: Iterable[Share]) -> None:
    """Note who was served and who had to wait."""
    served = {share.line.key for share in shares}
    for want in wanting:
        line = want.side or want.session
        line.waited = 0 if line.key in served else line.waited + 1
