"""All draft links, and the sessions spread over them.

Sessions go to the least loaded link, move when it goes down, no longer answers or is much more
loaded than another, and are opened again when one comes up. All of it runs in the engine thread;
the links themselves (`link`) live in the asyncio loop and meet it in two queues. Knows nothing of
gRPC.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence

import structlog

from outrider_target.drafting.agreement import SHARED_MEMORY, Agreement
from outrider_target.drafting.pricing.asking import Asking
from outrider_target.drafting.pricing.control import Control
from outrider_target.drafting.remote import placement
from outrider_target.drafting.remote.foresight import Foresight
from outrider_target.drafting.remote.link_state import LinkState
from outrider_target.drafting.remote.patience import LinkPace, RoundPace
from outrider_target.drafting.remote.remote_session import RemoteSession
from outrider_target.drafting.remote.updates import (
    CloseSession,
    LinkAdded,
    LinkDown,
    LinkEvent,
    LinkFrame,
    LinkUp,
    Resync,
    Update,
)
from outrider_target.requests.request import GenerationRequest

log = structlog.get_logger()

MAX_OFFENCES = 256
"""Broken proposals after which a link is closed."""

_BALANCE_INTERVAL = 0.1
"""Seconds between two moves of a session from one link to another."""

_SILENCE_SECONDS = 5.0
"""Seconds after which a link that was left because it did not answer may have a session again."""


class DraftFleet:
    """All links to draft services, and the sessions spread over them."""

    def __init__(
        self, *, vocab_size: int, round_pace: RoundPace, control: Control | None = None
    ) -> None:
        self._vocab_size = vocab_size
        self._round_pace = round_pace
        self._control = control or Control()
        self._agreement = Agreement(memory=SHARED_MEMORY)
        self.foresight = Foresight()
        """How often drafts were there in time."""
        self.links: list[LinkState] = []
        self._sessions: dict[int, RemoteSession] = {}
        self._numbers = itertools.count(1)
        self._balanced_at = 0.0

    def add_link(
        self,
        *,
        post: Callable[[Sequence[Update]], None],
        expel: Callable[[str], None],
    ) -> int:
        """Add a link that is not up yet; returns its index, the one its events carry."""
        self.links.append(LinkState(len(self.links), post, expel))
        return len(self.links) - 1

    def state(self, index: int) -> LinkState | None:
        """A link's; None where it was not added yet. Any thread."""
        return self.links[index] if index < len(self.links) else None

    def open(
        self,
        request: GenerationRequest,
        *,
        sample_index: int,
        token_ids: Sequence[int],
        window: int,
    ) -> RemoteSession:
        """Open a session on the least loaded link; without one, wait for a link to come up."""
        session = RemoteSession(
            next(self._numbers),
            request,
            sample_index,
            token_ids,
            vocab_size=self._vocab_size,
            round_pace=self._round_pace,
            agreement=self._agreement,
            foresight=self.foresight,
            draft_temperatures=self._control.draft_temperatures,
            asking=Asking(self._control.gate, request),
            forget=self._forget,
        )
        self._sessions[session.number] = session
        self._place(session, window=max(1, window))
        return session

    def _forget(self, session: RemoteSession) -> None:
        """Close a session."""
        self._sessions.pop(session.number, None)
        if session.link is not None:
            if session.opened:
                session.link.pending.append(CloseSession(session.number))
            session.detach()

    def handle(self, event: LinkEvent) -> None:
        """Take in what a link reports. A fault here costs the link, never the round."""
        if isinstance(event, LinkAdded):
            self.add_link(post=event.post, expel=event.expel)
            return
        link = self.links[event.link]
        try:
            if isinstance(event, LinkUp):
                self._link_up(link, event)
            elif isinstance(event, LinkDown):
                self._link_down(link)
            elif link.up:
                self._take_frame(link, event)
        except Exception:
            log.exception("draft_link_faulted", link=link.index)
            link.expel("a fault in handling its frames")
            self._link_down(link)

    def flush(self) -> None:
        """Send each link its updates of the round, as one frame."""
        if len(self.links) > 1:
            self._balance(time.monotonic())
        for link in self.links:
            if link.pending:
                updates, link.pending = link.pending, []
                if link.up:
                    link.post(updates)

    def _place(self, session: RemoteSession, *, window: int | None = None) -> None:
        candidates = [
            link for link in self.links if link.has_room and link.index not in session.refused_by
        ]
        if (link := placement.choose(candidates)) is not None:
            session.attach(link, window)

    def _balance(self, now: float) -> None:
        """Move a session at a time, so that a link that flaps never takes many with it."""
        if now - self._balanced_at < _BALANCE_INTERVAL:
            return
        self._balanced_at = now
        for link in self.links:
            if link.pace.stalled and not link.sessions and now >= link.try_again_at:
                link.pace.try_again()
        if (move := placement.move(self.links)) is None:
            return
        move.source.try_again_at = now + _SILENCE_SECONDS
        # The youngest has the least text to be read again.
        session = move.source.sessions[max(move.source.sessions)]
        if move.destination.index not in session.refused_by:
            if session.opened:
                move.source.pending.append(CloseSession(session.number))
            session.detach()
            session.attach(move.destination)

    def _link_up(self, link: LinkState, event: LinkUp) -> None:
        link.up = True
        link.kind = event.drafter.kind
        link.capacity = event.drafter.max_sessions
        link.pace = LinkPace(link.pace.answers)
        link.offences = 0
        link.pending.clear()
        for session in self._sessions.values():
            session.refused_by.discard(link.index)
            if session.link is None:
                self._place(session)

    def _link_down(self, link: LinkState) -> None:
        link.up = False
        link.pending.clear()
        orphans = list(link.sessions.values())
        for session in orphans:
            session.detach()
        for session in orphans:
            self._place(session)

    def _take_frame(self, link: LinkState, frame: LinkFrame) -> None:
        for growth in frame.growths:
            # A session closed a moment ago may still be growing on the other side.
            if (session := link.sessions.get(growth.session)) is not None:
                link.offences += session.grow(growth, frame.arrived_at)
        for resync in frame.resyncs:
            self._resync(link, resync)
        if link.offences > MAX_OFFENCES:
            log.warning("draft_link_expelled", link=link.index, offences=link.offences)
            link.expel("too many broken proposals")

    def _resync(self, link: LinkState, resync: Resync) -> None:
        session = link.sessions.get(resync.session)
        if session is None:
            return
        if not resync.refused:
            session.resync(resync.held_length)
            return
        log.info(
            "draft_session_refused",
            link=link.index,
            reason=resync.reason,
            request_id=session.request_id,
        )
        session.refused_by.add(link.index)
        session.detach()
        self._place(session)
