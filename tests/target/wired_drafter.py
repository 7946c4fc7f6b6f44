"""A target's sessions and a real drafting engine, joined by the frames of the wire and no network.

Nothing runs in threads: the drafter does as many steps as it is told to between two rounds.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from outrider.v1 import draft_pb2
from outrider_draft import frames
from outrider_draft.engine import DraftEngine
from outrider_draft.metrics import DraftMetrics
from outrider_draft.proposer import Proposer
from outrider_draft.settings import SessionSettings, StepSettings
from outrider_target.drafting.remote import wire
from outrider_target.drafting.remote.fleet import DraftFleet
from outrider_target.drafting.remote.patience import RoundPace
from outrider_target.drafting.remote.updates import DrafterDescription, LinkUp, Update
from prometheus_client import CollectorRegistry
from target.batch import Batch


class WiredDrafter:
    """A fleet with one drafter at the far end.

    Args:
        proposer: What the drafter proposes.
        vocab_size: Of both sides.
        max_steps: Between two rounds the drafter does up to so many steps, at random.
    """

    def __init__(self, proposer: Proposer, *, vocab_size: int, max_steps: int) -> None:
        self.fleet = DraftFleet(vocab_size=vocab_size, round_pace=RoundPace())
        self.num_bytes = 0
        """Of all answers."""
        self._bounds = frames.Bounds(0, vocab_size, vocab_size, 10_000)
        self._max_steps = max_steps
        self._chance = random.Random(0)
        self._engine = DraftEngine(
            proposer,
            sessions=SessionSettings(max_sessions=4096, max_sessions_per_target=4096),
            steps=StepSettings(),
            metrics=DraftMetrics(CollectorRegistry()),
        )
        self._index = self.fleet.add_link(post=self._post, expel=self._expel)
        self.fleet.handle(LinkUp(self._index, DrafterDescription("model", "tiny", 4096)))

    def before_round(self, batch: Batch) -> None:
        """Carry frames both ways, and draft for a while."""
        self.fleet.flush()
        for _ in range(self._chance.randint(0, self._max_steps)):
            if self._engine.has_growth:
                self._engine.step()
                self._deliver()
        self._deliver()

    def _post(self, updates: Sequence[Update]) -> None:
        frame = draft_pb2.SpeculateRequest()
        frame.ParseFromString(wire.frame(updates).SerializeToString())
        for update in frames.updates(frame, self._bounds):
            self._engine.apply(update)

    def _deliver(self) -> None:
        if messages := self._engine.take_messages():
            sent = frames.response(messages).SerializeToString()
            self.num_bytes += len(sent)
            frame = draft_pb2.SpeculateResponse()
            frame.ParseFromString(sent)
            self.fleet.handle(wire.link_frame(self._index, frame))

    def _expel(self, reason: str) -> None:
        raise AssertionError(reason)
