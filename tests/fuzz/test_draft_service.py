"""Wild frames to a draft service: sessions or links are refused, and the others are served on."""

from __future__ import annotations

import asyncio
import collections
from typing import Any

import grpc
import pytest
from draft.harness import FINGERPRINT, RunningDrafter, draft_service, target
from fuzz.figures import told
from fuzz.lengths import SEED, lengths
from fuzz.random_messages import MessageMaker
from outrider.v1 import draft_pb2
from outrider_contract.generation_config import from_json_dict
from outrider_draft.lookup_proposer import LookupProposer
from outrider_draft.settings import LookupSettings
from outrider_runtime.draft_protocol import PROTOCOL_VERSION

VOCAB_SIZE = 64
FRAMES_PER_LINK = 50
REFUSED = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
}

HELLO = draft_pb2.SpeculateRequest(
    hello=draft_pb2.Hello(
        protocol_version=PROTOCOL_VERSION, tokenizer_fingerprint=FINGERPRINT, vocab_size=VOCAB_SIZE
    )
)


def sensible(maker: MessageMaker) -> draft_pb2.SpeculateRequest:
    """A frame as a target might send it."""
    chance = maker.chance
    frame = draft_pb2.SpeculateRequest()
    for _ in range(chance.randint(0, 2)):
        length = chance.randint(1, 20)
        frame.opens.append(
            draft_pb2.Open(
                session=chance.randint(1, 4),
                token_ids=[chance.randrange(VOCAB_SIZE) for _ in range(length)],
                num_prompt_tokens=length,
                generation_config=from_json_dict({"max_new_tokens": 30}),
                limits=draft_pb2.Limits(window=3, depth=5, max_nodes=64),
            )
        )
    for _ in range(chance.randint(0, 3)):
        tokens = [chance.randrange(VOCAB_SIZE) for _ in range(chance.randint(0, 5))]
        frame.commits.append(
            draft_pb2.Commit(
                session=chance.randint(1, 4), base_length=chance.randint(0, 30), token_ids=tokens
            )
        )
    if chance.random() < 0.2:
        frame.closes.append(draft_pb2.Close(session=chance.randint(1, 4)))
    return frame


def wild(maker: MessageMaker) -> list[bytes]:
    """Frames for a link; in every other one some that end it."""
    spares_the_link = maker.chance.random() < 0.5
    frames = []
    for _ in range(FRAMES_PER_LINK):
        kind = maker.chance.random()
        frame = sensible(maker)
        if 0.4 < kind < 0.8:
            frame = maker.changed(frame)
        elif kind >= 0.8:
            frame = maker.message(draft_pb2.SpeculateRequest)
        if spares_the_link:
            frame.ClearField("hello")
        data = frame.SerializeToString()
        frames.append(maker.damaged(data) if kind > 0.98 and not spares_the_link else data)
    return frames


def send_on_a_link(address: str, frames: list[bytes]) -> grpc.StatusCode:
    """How a link ends that these frames are sent on."""
    with grpc.insecure_channel(address) as channel:
        speculate: Any = channel.stream_stream("/outrider.v1.DraftService/Speculate")
        call = speculate(iter([HELLO.SerializeToString(), *frames]), timeout=20)
        try:
            for _ in call:
                pass
        except grpc.RpcError as error:
            code: grpc.StatusCode = error.code()
            if code not in REFUSED:
                pytest.fail(f"{code.name} {error.details()}: {frames}")
            return code
    return grpc.StatusCode.OK


@lengths(2500, share=0.12)
async def test_wild_frames_cost_at_most_their_link(num_frames: int) -> None:
    maker = MessageMaker(SEED)
    seen: collections.Counter[str] = collections.Counter()
    with told("draft service", num_frames, seen):
        async with draft_service(LookupProposer(LookupSettings())) as drafter:
            for _ in range(0, num_frames, FRAMES_PER_LINK):
                code = await asyncio.to_thread(send_on_a_link, drafter.address, wild(maker))
                seen[code.name] += 1
                if sum(seen.values()) % 20 == 0:
                    await still_serves(drafter)
            await still_serves(drafter)
            await drafter.until(lambda: drafter.service.worker.num_sessions == 0)
    assert seen["OK"] > 0
    assert seen["INVALID_ARGUMENT"] > 0


async def still_serves(drafter: RunningDrafter) -> None:
    async with target(drafter, vocab_size=VOCAB_SIZE) as honest:
        await honest.open(1, [1, 2, 3, 1, 2, 3], window=2)
        assert await honest.grown(1) == [1, 2]
