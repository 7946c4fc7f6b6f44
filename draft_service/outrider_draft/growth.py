"""Which sessions grow in the next step. Pure.

Windows come before run-ahead: what a target waits for precedes what it may want later. Within each,
the most probable frontier comes first, because it is the most likely to be accepted; waiting adds
to a frontier's worth, so that an improbable one is late but never forgotten.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from outrider_draft.proposer import Share
from outrider_draft.session import Session
from outrider_draft.settings import StepSettings

SHORT_CATCH_UP = 64
"""Up to so many rows a session simply takes part; one with more to catch up with shares a budget
with its like, so that a long prompt delays the others by a bounded amount."""

WAIT_WORTH = 0.5
"""What a step of waiting adds to a frontier's log-probability."""


def worth(session: Session) -> float:
    """How much a session's next token is worth, beside others of its kind."""
    return session.path_log_prob + WAIT_WORTH * session.waited


def plan(
    wanting: Iterable[tuple[Session, int]], settings: StepSettings, *, rows_are_cheap: bool
) -> list[Share]:
    """Share out a step.

    Args:
        wanting: Sessions that may grow, each with the rows it needs before its next token.
        settings: Most sessions, and most rows for long catch-ups.
        rows_are_cheap: Whether run-ahead may fill up a step in which others are below their window.
            Where each row costs, it waits.

    Returns:
        Shares in order of precedence; empty only when nobody wants to grow.
    """
    ordered = sorted(wanting, key=lambda want: (not want[0].below_window, -worth(want[0])))
    if not rows_are_cheap and ordered and ordered[0][0].below_window:
        ordered = [want for want in ordered if want[0].below_window]
    shares: list[Share] = []
    long_rows = settings.max_num_batched_tokens
    for session, pending in ordered:
        if len(shares) >= settings.max_num_seqs:
            break
        rows = pending
        if pending > SHORT_CATCH_UP:
            rows = min(pending, long_rows)
            long_rows -= rows
        if rows:
            shares.append(Share(session, rows))
    return shares


def age(wanting: Sequence[tuple[Session, int]], shares: Iterable[Share]) -> None:
    """Note who was served and who had to wait."""
    served = {share.session.key for share in shares}
    for session, _ in wanting:
        session.waited = 0 if session.key in served else session.waited + 1
