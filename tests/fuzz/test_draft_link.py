"""Wild frames from a drafter: dropped and counted; the rounds go on and no fault is ours."""

from __future__ import annotations

import collections
import dataclasses
import itertools

from fuzz.figures import told
from fuzz.lengths import SEED, lengths
from fuzz.random_messages import MessageMaker
from google.protobuf.message import DecodeError
from outrider.v1 import draft_pb2
from outrider_target.drafting.drafter import DraftSession
from outrider_target.drafting.remote import wire
from outrider_target.drafting.remote.fleet import DraftFleet
from outrider_target.drafting.remote.patience import RoundPace
from target.batch import SPECULATION, request
from target.fake_link import FakeLink

VOCAB_SIZE = 64
PROMPT = [10, 11, 12]


ids = itertools.count(1)


def sensible(maker: MessageMaker, num_sessions: int, length: int) -> draft_pb2.SpeculateResponse:
    """A frame as a drafter might send it."""
    chance = maker.chance
    size = chance.randint(0, 5)
    first = next(ids) * 8
    grow = draft_pb2.Grow(
        session=chance.randint(1, num_sessions),
        base_length=max(0, length - chance.choice([0, 0, 0, 1, 2])),
        node_ids=range(first, first + size),
        parent_ids=[0 if i == 0 else first + i - 1 for i in range(size)],
        token_ids=[chance.randrange(VOCAB_SIZE) for _ in range(size)],
        log_probs=[-1.0] * size,
        complete=chance.random() < 0.7,
    )
    frame = draft_pb2.SpeculateResponse(grows=[grow])
    if chance.random() < 0.05:
        frame.resyncs.append(
            draft_pb2.Resync(session=grow.session, held_length=chance.randint(0, length))
        )
    return frame


def wild(maker: MessageMaker, num_sessions: int, length: int) -> draft_pb2.SpeculateResponse | None:
    kind = maker.chance.random()
    if kind < 0.4:
        return sensible(maker, num_sessions, length)
    if kind < 0.9:
        return maker.changed(sensible(maker, num_sessions, length))
    if kind < 0.95:
        return maker.message(draft_pb2.SpeculateResponse)
    try:
        damaged = maker.damaged(sensible(maker, num_sessions, length).SerializeToString())
        return draft_pb2.SpeculateResponse.FromString(damaged)
    except DecodeError:
        return None


def open_session(fleet: DraftFleet) -> DraftSession:
    asked = request(PROMPT, speculation=dataclasses.replace(SPECULATION, run_ahead=4))
    return fleet.open(asked, sample_index=0, token_ids=PROMPT, window=3)


def connected() -> tuple[DraftFleet, FakeLink]:
    fleet = DraftFleet(vocab_size=VOCAB_SIZE, round_pace=RoundPace(seconds=10.0))
    link = FakeLink(fleet, lambda prefix: (prefix[-1] + 1) % VOCAB_SIZE)
    link.come_up()
    return fleet, link


@lengths(20_000, share=0.86)
def test_wild_frames_are_dropped_and_nothing_else(num_frames: int) -> None:
    maker = MessageMaker(SEED)
    fleet, link = connected()
    sessions: list[DraftSession] = []
    length = len(PROMPT)
    seen: collections.Counter[str] = collections.Counter()
    with told("draft link of the target", num_frames, seen):
        for number in range(num_frames):
            if not sessions or length > 40:
                for session in sessions:
                    session.close()
                sessions = [open_session(fleet) for _ in range(3)]
                length = len(PROMPT)
            frame = wild(maker, max(fleet.links[0].sessions, default=1), length)
            if frame is not None:
                fleet.handle(wire.link_frame(link.index, frame))
            if number % 8 == 0:
                for session in sessions:
                    draft = session.proposal(3).token_ids
                    seen["drafted"] += len(draft)
                    assert all(0 <= token < VOCAB_SIZE for token in draft)
                    assert len(draft) <= 3
                    session.commit([*draft[:1], maker.chance.randrange(VOCAB_SIZE)], window=3)
                length += 2
                fleet.flush()
            if link.expelled:
                assert "fault" not in link.expelled[0], link.expelled
                seen["expelled"] += 1
                fleet, link = connected()  # the old one would be listened to less and less
                sessions = []
    assert seen["drafted"] > 0
    assert seen["expelled"] > 0
