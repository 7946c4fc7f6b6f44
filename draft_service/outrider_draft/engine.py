"""Drafting for all sessions of all targets: takes in updates, does steps, tells what came of it.

Knows nothing of threads or gRPC: whoever calls it owns it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Container

import structlog
from outrider_runtime.draft_tree import ROOT, CommitGap
from outrider_runtime.tracing import Tracer

from outrider_draft import answers, growth
from outrider_draft.metrics import DraftMetrics
from outrider_draft.proposer import Outcome, OutOfRoom, Proposer, Share
from outrider_draft.session import Session, Walk
from outrider_draft.session_table import SessionTable
from outrider_draft.session_trace import SessionTrace
from outrider_draft.settings import SessionSettings, StepSettings
from outrider_draft.updates import (
    Broken,
    Closed,
    Committed,
    Grown,
    Message,
    Opened,
    Refusal,
    Resynced,
    SessionKey,
    StreamEnded,
    Update,
)

log = structlog.get_logger(__name__)


class DraftEngine:
    """All sessions, and the one proposer that serves them."""

    def __init__(
        self,
        proposer: Proposer,
        *,
        sessions: SessionSettings,
        steps: StepSettings,
        metrics: DraftMetrics,
        tracer: Tracer | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start without sessions.

        Args:
            proposer: What extends the chains.
            sessions: How many sessions are held, and how long they may be.
            steps: How much a step does.
            metrics: Counters.
            tracer: Records sessions; None: nothing does.
            clock: Seconds, from any start.
        """
        self.max_length = min(
            sessions.max_length, proposer.description.max_length or sessions.max_length
        )
        """Longest sequence that is served, in tokens."""
        self._proposer = proposer
        self._settings = sessions
        self._steps = steps
        self._metrics = metrics
        self._tracer = tracer
        self._clock = clock
        self._table = SessionTable()
        self._growing: dict[SessionKey, Session] = {}
        self._due: dict[SessionKey, Session] = {}
        self._outbox: list[Message] = []

    @property
    def num_sessions(self) -> int:
        """Sessions held."""
        return len(self._table)

    @property
    def has_growth(self) -> bool:
        """Whether a step would do anything."""
        return bool(self._growing)

    @property
    def is_waited_for(self) -> bool:
        """Whether a target may be waiting for what a step would do."""
        return any(s.below_window and s.room() for s in self._growing.values())

    def apply(self, update: Update) -> None:
        """Take in what a target said."""
        try:
            self._apply(update)
        except Exception:  # a fault of ours costs the session, no other
            if isinstance(update, StreamEnded):
                raise
            known = update if isinstance(update, Opened) else self._table.get(update.key)
            log.exception(
                "update_failed",
                session=update.key,
                request_id=known.request.request_id if known else "",
            )
            self._refuse(update.key, Refusal.FAILED, "drafting failed; see the drafter's log")

    def step(self) -> None:
        """Grow the sessions that precede the others by one step of the proposer."""
        wanting = [
            growth.Want(session, self._proposer.pending(session))
            for session in self._growing.values()
            if session.room()
        ]
        wanting += [
            growth.Want(session, self._proposer.pending(side), side)
            for session in self._growing.values()
            if session.sides
            for side in session.growing_sides()
        ]
        shares = growth.plan(wanting, self._steps, rows_are_cheap=self._proposer.rows_are_cheap)
        growth.age(wanting, shares)
        self._metrics.step_lines.observe(len(shares))
        shares, outcomes = self._extend(shares)
        for share, outcome in zip(shares, outcomes, strict=True):
            if self._takes_part(share):  # it may have made room for one served after it
                self._take(share, outcome)

    def take_messages(self) -> list[Message]:
        """What the targets should be told now; it counts as told."""
        for session in self._due.values():
            if (grown := answers.take_due(session)) is not None:
                self._outbox.append(grown)
                self._time_answer(session, grown)
        self._due.clear()
        messages, self._outbox = self._outbox, []
        return messages

    def _time_answer(self, session: Session, grown: Grown) -> None:
        """Count how long it took, once for each time the target spoke."""
        if grown.complete and session.asked_at is not None:
            now = self._clock()
            self._metrics.answer_time.observe(now - session.asked_at)
            if session.trace is not None:
                proposed = len(grown.proposals)
                session.trace.answered(session.asked_at, now, num_proposed=proposed)
            session.asked_at = None

    def _apply(self, update: Update) -> None:
        match update:
            case Opened():
                self._open(update)
            case Committed():
                self._commit(update)
            case Closed():
                self._forget(update.key)
            case Broken():
                self._refuse(update.key, Refusal.MALFORMED, update.reason)
            case StreamEnded():
                for key in self._table.keys_of(update.stream):
                    self._forget(key)

    def _open(self, opened: Opened) -> None:
        last_id = ROOT
        if (replaced := self._table.get(opened.key)) is not None:
            last_id = replaced.tree.last_id
            self._forget(opened.key)
        if len(opened.token_ids) > self.max_length:
            self._refuse_too_long(opened.key)
        elif self._table.count(opened.key.stream) >= self._settings.max_sessions_per_target:
            limit = self._settings.max_sessions_per_target
            self._refuse(opened.key, Refusal.QUOTA, f"this target holds {limit} sessions already")
        elif self.num_sessions >= self._settings.max_sessions and not self._push_out_idle():
            why = f"all {self._settings.max_sessions} sessions are in use"
            self._refuse(opened.key, Refusal.NO_ROOM, why)
        else:
            session = Session.open(
                opened, max_length=self.max_length, now=self._clock(), last_id=last_id
            )
            if self._tracer is not None:
                session.trace = SessionTrace.of(
                    opened.request, length=len(opened.token_ids), tracer=self._tracer
                )
            self._table.add(session)
            self._metrics.sessions_opened.inc()
            self._metrics.num_sessions.set(self.num_sessions)
            self._settle(session)

    def _commit(self, committed: Committed) -> None:
        session = self._table.get(committed.key)
        if session is None:
            self._resync(committed.key, 0, "unknown session")
            return
        self._table.touch(session, now=self._clock())
        held_length = session.tree.committed_length
        try:
            walk = session.commit(committed.base_length, committed.token_ids, committed.limits)
        except CommitGap as gap:
            self._resync(committed.key, gap.held_length, str(gap))
            return
        self._metrics.committed_tokens.inc(max(0, session.tree.committed_length - held_length))
        if session.tree.committed_length > self.max_length:
            self._refuse_too_long(committed.key)
            return
        self._follow(session, walk)
        self._settle(session)

    def _follow(self, session: Session, walk: Walk) -> None:
        """Let the proposer know what is true now."""
        for line in walk.dropped:
            self._proposer.forget(line)
        if walk.adopted is not None:
            self._proposer.adopt(session.key, walk.adopted)
        else:
            self._proposer.rewind(session.key, walk.unchanged)
        if walk.agreed is not None:
            answer = "followed" if walk.agreed else "corrected"
            ready = "ready" if session.chain else "missing"
            self._metrics.answers.labels(answer, ready).inc()

    def _extend(self, shares: list[Share]) -> tuple[list[Share], list[Outcome]]:
        """Do a step, making room where it does not fit."""
        while shares:
            try:
                return shares, self._proposer.extend(shares)
            except OutOfRoom:
                shares = self._make_room(shares)
            except Exception:  # a fault of ours, or of one session's options
                if len(shares) == 1:
                    session = shares[0].session
                    log.exception(
                        "session_failed",
                        session=session.key,
                        request_id=session.request.request_id,
                    )
                    why = "drafting failed; see the drafter's log"
                    self._refuse(shares[0].session.key, Refusal.FAILED, why)
                    return [], []
                # One session's trouble is its own: find it by serving them one by one.
                ids = sorted({share.session.request.request_id for share in shares})
                log.warning("step_failed", request_ids=ids, exc_info=True)
                return self._extend_one_by_one(shares)
        return [], []

    def _extend_one_by_one(self, shares: list[Share]) -> tuple[list[Share], list[Outcome]]:
        served: list[Share] = []
        outcomes: list[Outcome] = []
        for share in shares:
            if self._takes_part(share):
                alone, outcome = self._extend([share])
                served += alone
                outcomes += outcome
        return served, outcomes

    def _make_room(self, shares: list[Share]) -> list[Share]:
        """Let go of what takes part or takes room; returns the shares that are left.

        Guesses beside the chains first: no session loses its place for them.
        """
        if not self._drop_sides() and not self._push_out_idle():
            taking_part = {share.session.key for share in shares}
            self._refuse(self._newest(taking_part).key, Refusal.NO_ROOM, "no room in the cache")
        return [share for share in shares if self._takes_part(share)]

    def _drop_sides(self) -> bool:
        """Let go of all side lines; returns whether there were any."""
        dropped = [line for session in self._table for line in session.drop_sides()]
        for line in dropped:
            self._proposer.forget(line)
        return bool(dropped)

    def _newest(self, taking_part: Container[SessionKey]) -> Session:
        """The session that was opened last, of those that take part or take room."""
        return max(
            (s for s in self._table if s.key in taking_part or self._proposer.holds(s.key)),
            key=lambda session: session.opened_at,
        )

    def _push_out_idle(self) -> bool:
        """Forget the least recently used session, if it is idle; its target may open it again."""
        # Whoever waits for growth is not idle, however long that takes here.
        session = self._table.least_recently_used(but=self._growing)
        if session is None or self._clock() - session.last_used < self._settings.idle_seconds:
            return False
        self._forget(session.key)
        self._metrics.sessions_evicted.inc()
        self._outbox.append(Resynced(session.key, 0, reason="made room for another session"))
        return True

    def _refuse(self, key: SessionKey, refusal: Refusal, why: str) -> None:
        self._forget(key)
        self._metrics.sessions_refused.labels(refusal).inc()
        self._outbox.append(Resynced(key, 0, refused=True, reason=why))

    def _refuse_too_long(self, key: SessionKey) -> None:
        self._refuse(key, Refusal.TOO_LONG, f"longer than the {self.max_length} tokens served here")

    def _resync(self, key: SessionKey, held_length: int, why: str) -> None:
        self._metrics.resyncs.inc()
        self._outbox.append(Resynced(key, held_length, reason=why))

    def _forget(self, key: SessionKey) -> None:
        if (session := self._table.remove(key)) is not None:
            if session.trace is not None:
                session.trace.end()
            for line in session.drop_sides():
                self._proposer.forget(line)
            self._growing.pop(key, None)
            self._due.pop(key, None)
            self._proposer.forget(key)
            self._metrics.num_sessions.set(self.num_sessions)

    def _takes_part(self, share: Share) -> bool:
        """Whether a share's line is still there."""
        session = share.session
        held = self._table.get(session.key) is session
        return held and (share.side is None or share.side in session.sides)

    def _take(self, share: Share, outcome: Outcome) -> None:
        """Add what a step brought to a session's tree."""
        session = share.session
        if share.side is None:
            added = session.extend(outcome.proposed, outcome.siblings)
            session.exhausted = outcome.exhausted
        else:
            added = session.extend_side(share.side, outcome.proposed, outcome.siblings)
            share.side.exhausted = outcome.exhausted
        self._metrics.proposed_tokens.inc(added)
        self._settle(session)

    def _settle(self, session: Session) -> None:
        """Note what a changed session wants next."""
        if session.may_grow:
            self._growing[session.key] = session
        else:
            self._growing.pop(session.key, None)
        self._due[session.key] = session
