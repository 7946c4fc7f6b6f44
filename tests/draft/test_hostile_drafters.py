"""The drafters that other tests attack a target with do what they promise to do."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from draft.harness import ScriptedTarget, target
from draft.hostile import ATTACKS, AdversarialDrafter, Greeting, RandomDrafter, serving
from outrider.v1 import draft_pb2
from outrider_conformance.target import TIMEOUT
from outrider_runtime.draft_protocol import PROTOCOL_VERSION


async def test_the_random_drafter_keeps_to_the_protocol_and_guesses() -> None:
    chains = set()
    async with serving(RandomDrafter(seed=1)) as drafter, target(drafter.address) as scripted:
        await scripted.open(1, [1, 2, 3], window=4, run_ahead=2)
        for _ in range(10):
            chain = await scripted.grown(1)  # the scripted target insists on the protocol
            assert len(chain) == 6
            assert all(0 <= token < scripted.vocab_size for token in chain)
            chains.add(tuple(chain))
            await scripted.commit(1, [*chain[:2], 5])
        assert len(chains) == 10  # yet it never says the same twice
        assert drafter.drafter.num_proposed >= 50


async def answers(drafter: AdversarialDrafter, *, rounds: int) -> list[draft_pb2.SpeculateResponse]:
    """What a drafter sends in answer to some commits; new links where it ends them."""
    received: list[draft_pb2.SpeculateResponse] = []
    async with serving(drafter) as served, asyncio.timeout(TIMEOUT):
        link: ScriptedTarget | None = None
        async with grpc.aio.insecure_channel(served.address) as channel:
            for number in range(rounds):
                if link is None:
                    link = ScriptedTarget(channel, vocab_size=50)
                    hello = draft_pb2.Hello(protocol_version=PROTOCOL_VERSION, vocab_size=50)
                    await link.call.write(draft_pb2.SpeculateRequest(hello=hello))
                    await link.call.read()
                opened = link.open_message(number + 2, [1, 2, 3])
                await link.call.write(draft_pb2.SpeculateRequest(opens=[opened]))
                name = drafter.repertoire[number % len(drafter.repertoire)]
                if name == "silence":
                    continue
                try:
                    frame = await link.call.read()
                except grpc.aio.AioRpcError:
                    link = None
                    continue
                if isinstance(frame, draft_pb2.SpeculateResponse):
                    received.append(frame)
            if link is not None:
                link.call.cancel()
    return received


async def test_the_adversary_breaks_every_rule_in_turn() -> None:
    drafter = AdversarialDrafter(seed=3)
    received = await answers(drafter, rounds=2 * len(ATTACKS))
    assert set(drafter.attacks) == set(ATTACKS)
    assert set(drafter.attacks.values()) == {2}
    grows = [grow for frame in received for grow in frame.grows]
    assert any(max(grow.token_ids, default=0) >= 50 for grow in grows)
    assert any(len(set(grow.node_ids)) > 4000 for grow in grows)
    sizes = [
        {len(g.node_ids), len(g.parent_ids), len(g.token_ids), len(g.log_probs)} for g in grows
    ]
    assert any(len(different) > 1 for different in sizes)
    assert any(frame.HasField("welcome") for frame in received)
    assert any(resync.refused for frame in received for resync in frame.resyncs)


async def test_the_adversary_is_reproducible_and_varies_with_its_seed() -> None:
    first, again, other = [
        await answers(AdversarialDrafter(seed=seed, ends_links=False), rounds=6)
        for seed in (1, 1, 2)
    ]
    assert [frame.SerializeToString() for frame in first] == [
        frame.SerializeToString() for frame in again
    ]
    assert first != other


@pytest.mark.parametrize("greeting", [Greeting.WRONG_VERSION, Greeting.NOT_A_WELCOME])
async def test_a_link_can_begin_wrongly(greeting: Greeting) -> None:
    async with (
        serving(AdversarialDrafter(greeting=greeting)) as drafter,
        target(drafter.address, hello=False) as scripted,
    ):
        hello = draft_pb2.Hello(protocol_version=PROTOCOL_VERSION, vocab_size=9)
        await scripted.send(draft_pb2.SpeculateRequest(hello=hello))
        async with asyncio.timeout(TIMEOUT):
            first = await scripted.call.read()
        assert isinstance(first, draft_pb2.SpeculateResponse)
        assert first.welcome.protocol_version != PROTOCOL_VERSION
