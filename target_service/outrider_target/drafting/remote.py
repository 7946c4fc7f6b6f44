"""Sequences drafted by remote draft services.

The fleet spreads sessions over the links that are up, moves them when a link goes down, and opens
them again when one comes up. All of it runs in the engine thread; the links themselves (`link.py`)
live in the asyncio loop and meet it in two queues. Knows nothing of gRPC.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import structlog
from outrider_runtime.draft_tree import DraftTree, Limits

from outrider_target.drafting.drafter import DraftSession
from outrider_target.drafting.patience import LinkPace, Patience
from outrider_target.drafting.updates import (
    CloseSession,
    CommitTokens,
    Growth,
    LinkDown,
    LinkEvent,
    LinkFrame,
    LinkUp,
    OpenSession,
    Resync,
    Update,
)
from outrider_target.request import GenerationRequest

log = structlog.get_logger()

MAX_NODES = 256
"""Nodes granted to a session's tree. Far above any window; a drafter that exceeds it floods."""

MAX_OFFENCES = 256
"""Broken proposals after which a link is closed."""

_MAX_UNANSWERED = 64
"""Commits of a session whose answers may be outstanding before the oldest is given up."""


@dataclass(slots=True, eq=False)
class LinkState:
    """A link as the engine sees it."""

    index: int
    post: Callable[[Sequence[Update]], None]
    """Hands a round's updates to the link. Never blocks."""
    expel: Callable[[str], None]
    """Closes the link for a while because the drafter misbehaves."""
    up: bool = False
    kind: str = ""
    capacity: int = 0
    pace: LinkPace = field(default_factory=LinkPace)
    offences: int = 0
    sessions: dict[int, RemoteSession] = field(default_factory=dict)
    pending: list[Update] = field(default_factory=list)

    @property
    def has_room(self) -> bool:
        """Whether one more session may be opened."""
        return self.up and len(self.sessions) < self.capacity


class RemoteSession:
    """One sequence's draft tree, and the link that grows it, if any."""

    def __init__(
        self,
        fleet: DraftFleet,
        number: int,
        request: GenerationRequest,
        sample_index: int,
        token_ids: Sequence[int],
    ) -> None:
        self.number = number
        self.link: LinkState | None = None
        self.refused_by: set[int] = set()
        self._fleet = fleet
        self._request = request
        self._sample_index = sample_index
        self._tree = DraftTree(token_ids)
        self._patience = Patience()
        self._window = 1
        self._asked: dict[int, float] = {}  # committed length told -> when, until answered
        self._complete_at = -1  # committed length for which the drafter has nothing more
        self._deadline = 0.0  # until when to wait for the answer
        self._waiting = False

    @property
    def active(self) -> bool:
        """Whether a link stands behind it."""
        return self.link is not None

    def commit(self, token_ids: Sequence[int], *, window: int) -> None:
        """Walk the tree and tell the drafter."""
        base_length = self._tree.committed_length
        if self._waiting and not self._answered and self.link is not None:
            self.link.pace.missed()  # the round gave up on it
        self._waiting = False
        self._tree.commit(base_length, token_ids)
        if window == 0 or self.link is None:
            return  # a last token needs no draft, and nothing is asked afterwards
        self._window = window
        self._tell(
            self.link, CommitTokens(self.number, base_length, tuple(token_ids), self._limits())
        )

    def waiting_until(self, window: int, now: float) -> float | None:
        """Until the answer is there, or waiting no longer pays."""
        if window == 0 or not self._waiting or self._answered or now >= self._deadline:
            return None
        return self._deadline

    def proposal(self, window: int) -> list[int]:
        """The most probable path of the tree as it is now."""
        return [node.token_id for node in self._tree.best_path(window)]

    def observe(self, num_draft_tokens: int, num_accepted: int) -> None:
        """Learn what drafts are worth here."""
        if num_draft_tokens:
            self._patience.observe(num_accepted)

    def close(self) -> None:
        """Forget the sequence on both sides."""
        self._fleet.forget(self)

    def attach(self, link: LinkState, window: int | None = None) -> None:
        """Open the session on a link, with a tree of its own node ids."""
        self._window = window or self._window
        self.link = link
        link.sessions[self.number] = self
        self._open_on(link)

    def detach(self) -> None:
        """Leave the link; what it proposed goes with it."""
        if self.link is not None:
            self.link.sessions.pop(self.number, None)
        self.link = None
        self._waiting = False
        self._tree = DraftTree(self._tree.token_ids)

    def grow(self, growth: Growth, arrived_at: float) -> int:
        """Take in proposals; returns the number of offences among them."""
        outcome = self._tree.grow(
            growth.base_length,
            growth.proposals,
            vocab_size=self._fleet.vocab_size,
            max_nodes=MAX_NODES,
        )
        if growth.complete:
            self._complete_at = growth.base_length
        # A late answer tells as much about the drafter's pace as one in time.
        asked_at = self._asked.get(growth.base_length)
        if asked_at is not None and (growth.complete or self._answered):
            if self.link is not None:
                self.link.pace.answered(max(0.0, arrived_at - asked_at))
            self._asked = {b: t for b, t in self._asked.items() if b > growth.base_length}
        return outcome.offences

    def resync(self, held_length: int) -> None:
        """Send what the drafter has lost."""
        assert self.link is not None
        if held_length == 0:
            self._open_on(self.link)
        elif held_length < self._tree.committed_length:
            lost = tuple(self._tree.token_ids[held_length:])
            self._tell(self.link, CommitTokens(self.number, held_length, lost, self._limits()))

    @property
    def _answered(self) -> bool:
        """Whether the tree is as deep as wanted, or will not get deeper."""
        if self._complete_at == self._tree.committed_length:
            return True
        return len(self._tree.best_path(self._window)) >= self._window

    def _open_on(self, link: LinkState) -> None:
        self._tree = DraftTree(self._tree.token_ids)
        self._complete_at = -1
        self._asked.clear()
        token_ids = tuple(self._tree.token_ids)
        self._tell(
            link,
            OpenSession(self.number, token_ids, self._request, self._sample_index, self._limits()),
        )

    def _tell(self, link: LinkState, update: OpenSession | CommitTokens) -> None:
        """Put an update into the round's frame, and decide how long to wait for its answer."""
        link.pending.append(update)
        now = time.monotonic()
        self._asked[self._tree.committed_length] = now
        if len(self._asked) > _MAX_UNANSWERED:
            self._asked.pop(next(iter(self._asked)))
        speculation = self._request.speculation
        if speculation.synchronous:
            patience = 0.0 if link.pace.stalled else speculation.timeout_seconds
        elif isinstance(update, OpenSession):
            patience = 0.0  # the drafter reads the whole text first: the first token comes sooner
        else:
            patience = self._patience.seconds(
                link.pace,
                round_seconds=self._fleet.round_seconds,
                timeout=speculation.timeout_seconds,
            )
        self._deadline = now + patience
        self._waiting = patience > 0

    def _limits(self) -> Limits:
        speculation = self._request.speculation
        run_ahead = 0 if speculation.synchronous else speculation.run_ahead
        return Limits(
            window=self._window,
            depth=self._window + run_ahead,
            max_nodes=MAX_NODES,
            confidence_threshold=speculation.confidence_threshold,
        )


class DraftFleet:
    """All links to draft services, and the sessions spread over them."""

    def __init__(self, *, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self.round_seconds = 0.0
        """What a round costs at the moment; the engine keeps it up to date."""
        self.links: list[LinkState] = []
        self._sessions: dict[int, RemoteSession] = {}
        self._numbers = itertools.count(1)

    def add_link(
        self,
        *,
        post: Callable[[Sequence[Update]], None],
        expel: Callable[[str], None],
    ) -> int:
        """Add a link that is not up yet; returns its index, the one its events carry."""
        self.links.append(LinkState(len(self.links), post, expel))
        return len(self.links) - 1

    def open(
        self,
        request: GenerationRequest,
        *,
        sample_index: int,
        token_ids: Sequence[int],
        window: int,
    ) -> DraftSession:
        """Open a session on the least loaded link; without one, wait for a link to come up."""
        session = RemoteSession(self, next(self._numbers), request, sample_index, token_ids)
        self._sessions[session.number] = session
        self._place(session, window=max(1, window))
        return session

    def forget(self, session: RemoteSession) -> None:
        """Close a session."""
        self._sessions.pop(session.number, None)
        if session.link is not None:
            session.link.pending.append(CloseSession(session.number))
            session.detach()

    def handle(self, event: LinkEvent) -> None:
        """Take in what a link reports."""
        link = self.links[event.link]
        if isinstance(event, LinkUp):
            self._link_up(link, event)
        elif isinstance(event, LinkDown):
            self._link_down(link)
        elif link.up:
            self._take_frame(link, event)

    def flush(self) -> None:
        """Send each link its updates of the round, as one frame."""
        for link in self.links:
            if link.pending:
                updates, link.pending = link.pending, []
                if link.up:
                    link.post(updates)

    def _place(self, session: RemoteSession, *, window: int | None = None) -> None:
        candidates = [
            link for link in self.links if link.has_room and link.index not in session.refused_by
        ]
        if candidates:
            session.attach(min(candidates, key=lambda link: len(link.sessions)), window)

    def _link_up(self, link: LinkState, event: LinkUp) -> None:
        link.up = True
        link.kind = event.drafter.kind
        link.capacity = event.drafter.max_sessions
        link.pace = LinkPace()
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
        log.info("draft_session_refused", link=link.index, reason=resync.reason)
        session.refused_by.add(link.index)
        session.detach()
        self._place(session)
