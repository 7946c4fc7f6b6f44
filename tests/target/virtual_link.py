"""A target's sessions and a real drafting engine, joined by a link in time that a test turns on.

Nothing runs in threads and nothing is slept: forwards, steps of drafting and the way of a frame
take the time they are said to take.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Sequence
from types import SimpleNamespace

import pytest
from outrider_draft.engine import DraftEngine
from outrider_draft.metrics import DraftMetrics
from outrider_draft.proposer import Proposer
from outrider_draft.settings import SessionSettings, StepSettings
from outrider_draft.updates import (
    Closed,
    Committed,
    Grown,
    Message,
    Opened,
    SessionKey,
    SessionRequest,
    StreamEnded,
)
from outrider_draft.updates import Update as DrafterUpdate
from outrider_target.drafting.remote import fleet as fleet_module
from outrider_target.drafting.remote import remote_session
from outrider_target.drafting.remote.fleet import DraftFleet
from outrider_target.drafting.remote.patience import RoundPace
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
from prometheus_client import CollectorRegistry

Ways = Callable[[float], Sequence[float]]
"""From a delay to when copies of a frame arrive: none where it is lost, two where it is doubled."""


class VirtualLink:
    """A fleet with one drafter at the far end of a slow line.

    Args:
        monkeypatch: Puts the clock into the target's modules.
        proposer: What the drafter proposes.
        delay: Seconds that a frame takes, one way.
        draft_seconds: Seconds of a step of drafting.
        round_seconds: Seconds of a forward of the target.
        ways: How frames arrive; by default each once.
        vocab_size: Of the target.
        steps: How much a step of drafting does.
    """

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        proposer: Proposer,
        *,
        delay: float,
        draft_seconds: float,
        round_seconds: float,
        ways: Ways = lambda delay: [delay],
        vocab_size: int = 100_000,
        steps: StepSettings | None = None,
    ) -> None:
        self.now = 1000.0
        self.round_seconds = round_seconds
        self.frames: list[Sequence[Message]] = []
        """What the drafter has sent."""
        self.num_expulsions = 0
        self._delay = delay
        self._draft_seconds = draft_seconds
        self._ways = ways
        self._coming: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._drafting = False
        clock = SimpleNamespace(monotonic=lambda: self.now)
        monkeypatch.setattr(remote_session, "time", clock)
        monkeypatch.setattr(fleet_module, "time", clock)
        self.round_pace = RoundPace(round_seconds)
        self.fleet = DraftFleet(vocab_size=vocab_size, round_pace=self.round_pace)
        self.metrics = DraftMetrics(CollectorRegistry())
        self.engine = DraftEngine(
            proposer,
            sessions=SessionSettings(),
            steps=steps or StepSettings(),
            metrics=self.metrics,
            clock=lambda: self.now,
        )
        index = self.fleet.add_link(post=self._post, expel=self._expel)
        self.fleet.handle(LinkUp(index, DrafterDescription("model", "scripted", 1000)))

    def flush(self) -> None:
        """Send what the target has to say."""
        self.fleet.flush()

    def run_until(self, ready: Callable[[], bool], *, deadline: float) -> float:
        """Let time go by until something is so; returns the seconds that took."""
        started = self.now
        while not ready() and self._coming and self._coming[0][0] <= deadline:
            self._next()
        if not ready():
            self.now = max(self.now, deadline)
        return self.now - started

    def run_for(self, seconds: float) -> None:
        """Let time go by, whatever happens."""
        until = self.now + seconds
        while self._coming and self._coming[0][0] <= until:
            self._next()
        self.now = until

    def _next(self) -> None:
        at, _, happen = heapq.heappop(self._coming)
        self.now = max(self.now, at)
        happen()

    def _at(self, seconds: float, happen: Callable[[], None]) -> None:
        heapq.heappush(self._coming, (self.now + seconds, next(self._numbers), happen))

    def _post(self, updates: Sequence[Update]) -> None:
        for delay in self._ways(self._delay):
            self._at(delay, lambda: self._arrive(updates))

    def _arrive(self, updates: Sequence[Update]) -> None:
        for update in updates:
            self.engine.apply(_as_drafter_reads(update))
        self._draft()

    def _draft(self) -> None:
        """Send what is due, and begin a step unless one is under way."""
        if messages := self.engine.take_messages():
            self.frames.append(messages)
            for delay in self._ways(self._delay):
                self._at(delay, lambda: self._deliver(messages))
        if self.engine.has_growth and not self._drafting:
            self._drafting = True
            self._at(self._draft_seconds, self._end_step)

    def _end_step(self) -> None:
        self._drafting = False
        self.engine.step()
        self._draft()

    def _deliver(self, messages: Sequence[Message]) -> None:
        growths = [
            Growth(m.key.number, m.base_length, m.proposals, m.complete)
            for m in messages
            if isinstance(m, Grown)
        ]
        resyncs = [
            Resync(m.key.number, m.held_length, m.refused, m.reason)
            for m in messages
            if not isinstance(m, Grown)
        ]
        self.fleet.handle(LinkFrame(0, self.now, growths, resyncs))
        self.flush()

    def _expel(self, reason: str) -> None:
        """The connection ends, with all that is on its way, and another one is made."""
        self.num_expulsions += 1
        self._at(0.0, self._connect_again)

    def _connect_again(self) -> None:
        self._coming = [event for event in self._coming if event[2] == self._end_step]
        heapq.heapify(self._coming)
        self.fleet.handle(LinkDown(0, "expelled"))
        self.engine.apply(StreamEnded(0))
        self.engine.take_messages()
        self.fleet.handle(LinkUp(0, DrafterDescription("model", "scripted", 1000)))
        self.flush()


def _as_drafter_reads(update: Update) -> DrafterUpdate:
    match update:
        case OpenSession():
            request = SessionRequest(
                update.request.parameters,
                num_prompt_tokens=len(update.request.prompt),
                seed=update.request.seed,
                vocab_size=100_000,
            )
            key = SessionKey(0, update.session)
            return Opened(key, update.token_ids, request, update.limits)
        case CommitTokens():
            key = SessionKey(0, update.session)
            return Committed(key, update.base_length, update.token_ids, update.limits)
        case CloseSession():
            return Closed(SessionKey(0, update.session))
