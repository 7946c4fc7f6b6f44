"""A draft link without a network: a scripted drafter at the far end of a `DraftFleet`."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from outrider_runtime.draft_tree import CommitGap, DraftTree, Limits, Node, Proposal
from outrider_target.drafting.remote.fleet import DraftFleet
from outrider_target.drafting.remote.updates import (
    CloseSession,
    CommitTokens,
    DrafterDescription,
    Growth,
    LinkDown,
    LinkFrame,
    LinkUp,
    OpenSession,
    Resync,
    Update,
)

Continue = Callable[[list[int]], int]
"""From a prefix to the next draft token."""


@dataclass
class FarSession:
    """What the drafter knows of a session."""

    tree: DraftTree
    limits: Limits


@dataclass
class FakeLink:
    """A drafter that answers when it is told to."""

    fleet: DraftFleet
    continue_with: Continue
    sessions: dict[int, FarSession] = field(default_factory=dict)
    frames: list[Sequence[Update]] = field(default_factory=list)
    expelled: list[str] = field(default_factory=list)
    due: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.index = self.fleet.add_link(post=self._receive, expel=self.expelled.append)

    def come_up(self, *, max_sessions: int = 100) -> None:
        """The handshake is done."""
        self.sessions.clear()
        self.due.clear()
        description = DrafterDescription("scripted", "scripted", max_sessions)
        self.fleet.handle(LinkUp(self.index, description))

    def go_down(self) -> None:
        """The connection is lost."""
        self.fleet.handle(LinkDown(self.index, "gone"))

    def answer(self) -> None:
        """Grow what is due and send it."""
        growths = [self._grow(number) for number in sorted(self.due)]
        self.due.clear()
        self.send(growths)

    def send(self, growths: Sequence[Growth] = (), resyncs: Sequence[Resync] = ()) -> None:
        """Send any frame."""
        self.fleet.handle(LinkFrame(self.index, time.monotonic(), growths, resyncs))

    def _receive(self, updates: Sequence[Update]) -> None:
        self.frames.append(updates)
        for update in updates:
            match update:
                case OpenSession():
                    tree = DraftTree(update.token_ids)
                    self.sessions[update.session] = FarSession(tree, update.limits)
                    self.due.add(update.session)
                case CommitTokens():
                    self._commit(update)
                case CloseSession():
                    self.sessions.pop(update.session, None)
                    self.due.discard(update.session)

    def _commit(self, update: CommitTokens) -> None:
        session = self.sessions.get(update.session)
        if session is None:
            self.send(resyncs=[Resync(update.session, 0, False, "")])
            return
        try:
            session.tree.commit(update.base_length, update.token_ids)
        except CommitGap as gap:
            self.send(resyncs=[Resync(update.session, gap.held_length, False, "")])
            return
        session.limits = update.limits
        self.due.add(update.session)

    def _grow(self, number: int) -> Growth:
        session = self.sessions[number]
        tree = session.tree
        path = tree.best_path()
        new: list[Node] = []
        while len(path) < session.limits.depth:
            prefix = [*tree.token_ids, *(node.token_id for node in path)]
            parent = path[-1].id if path else 0
            path.append(tree.add(parent, self.continue_with(prefix), -0.5))
            new.append(path[-1])
        proposals = [Proposal(n.id, n.parent_id, n.token_id, n.log_prob) for n in new]
        return Growth(number, tree.committed_length, proposals, True)
