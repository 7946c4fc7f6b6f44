"""When a target is told what of a session's growth. Pure, but for noting what was told."""

from __future__ import annotations

from outrider_runtime.draft_tree import ROOT, Proposal

from outrider_draft.session import Session
from outrider_draft.updates import Grown


def take_due(session: Session) -> Grown | None:
    """What the target should be told now, if anything; it counts as told."""
    complete = session.room() == 0
    owed = complete and session.answer_owed
    if not (owed or _window_due(session) or _ahead_due(session) or _drawn_due(session)):
        session.steps_unsent += 1
        return None
    if complete:
        session.answer_owed = False
    session.steps_unsent = 0
    proposals = _proposals(session)
    session.unsent.clear()
    return Grown(session.key, session.tree.committed_length, proposals, complete)


def _window_due(session: Session) -> bool:
    """Whether all that is wanted for the next round is there, and some of it was not sent."""
    if session.below_window or not session.unsent:
        return False
    return session.unsent[0].id <= session.chain[session.limits.window - 1].id


def _ahead_due(session: Session) -> bool:
    """Whether it is time to send what lies beyond the window or beside the chain.

    That is when the steps of another window went by, or nothing more will come.
    What was run ahead helps only if it is there before the target's answer leaves, and nobody
    knows when that is: so it is sent now and then, not at the end alone.
    """
    if not session.unsent or (session.below_window and session.room()):
        return False
    return session.steps_unsent + 1 >= session.limits.window or not session.may_grow


def _drawn_due(session: Session) -> bool:
    """Whether there is something that was drawn from a distribution.

    When such a token arrives must not depend on those drawn after it: were they awaited, the
    target would verify it the more often the sooner they end the chain.
    """
    return session.request.draws and bool(session.unsent)


def _proposals(session: Session) -> list[Proposal]:
    roots = {node.id for node in session.tree.children()}
    return [
        Proposal(
            node.id,
            # The parent of the first nodes may be committed, and unknown to the target.
            ROOT if node.id in roots else node.parent_id,
            node.token_id,
            node.log_prob,
            node.distribution,
        )
        for node in session.unsent
    ]
