"""The draft link end to end: a scripted target and a real service over loopback gRPC."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from typing import Any

import grpc
import pytest
from draft.harness import (
    RunningDrafter,
    ScriptedProposer,
    ScriptedTarget,
    counting,
    draft_service,
    target,
)
from outrider.v1 import draft_pb2
from outrider_conformance.streams import LinkEnded
from outrider_conformance.target import MAX_NODES, TIMEOUT
from outrider_contract.generation_config import from_json_dict
from outrider_draft.link import MAX_FRAMES_AHEAD
from outrider_draft.proposer import Outcome, Share
from outrider_draft.settings import SessionSettings, StepSettings
from outrider_runtime.draft_tree import Limits
from outrider_runtime.server import ServerSettings

SMALL_VOCABULARY = 50


def sure_of(*log_probs: float) -> ScriptedProposer:
    """Counts, with these log-probabilities of the tokens 1, 2, 3, ..."""
    return ScriptedProposer(lambda tokens: (tokens[-1] + 1, log_probs[tokens[-1]]))


class Gated(ScriptedProposer):
    """Counts, one step for each time the gate is opened."""

    def __init__(self) -> None:
        super().__init__(counting)
        self.arrived = threading.Semaphore(0)
        self.gate = threading.Semaphore(0)
        self.threads: set[str] = set()

    def extend(self, shares: Sequence[Share]) -> list[Outcome]:
        self.threads.add(threading.current_thread().name)
        self.arrived.release()
        assert self.gate.acquire(timeout=TIMEOUT)
        return super().extend(shares)

    async def step_begins(self) -> None:
        assert await asyncio.to_thread(self.arrived.acquire, timeout=TIMEOUT)


async def test_a_window_of_tokens_comes_back_in_one_message() -> None:
    async with draft_service(ScriptedProposer(counting)) as drafter, target(drafter) as scripted:
        session = await scripted.open(7, [1, 2, 3], window=4)
        assert await scripted.grown(7) == [4, 5, 6, 7]
        assert len(session.grows) == 1


async def test_sessions_opened_together_are_answered_in_one_frame() -> None:
    async with draft_service(ScriptedProposer(counting)) as drafter, target(drafter) as scripted:
        opens = [scripted.open_message(i, [i * 10], window=3) for i in range(1, 9)]
        await scripted.send(draft_pb2.SpeculateRequest(opens=opens))
        for i in range(1, 9):
            assert await scripted.grown(i) == [i * 10 + 1, i * 10 + 2, i * 10 + 3]
        assert len(scripted.frames) == 1


async def test_the_chain_goes_on_from_what_was_committed() -> None:
    async with draft_service(ScriptedProposer(counting)) as drafter, target(drafter) as scripted:
        await scripted.open(1, [1], window=3)
        assert await scripted.grown(1) == [2, 3, 4]
        await scripted.commit(1, [2, 3, 4, 5])  # all accepted, and the bonus
        assert await scripted.grown(1) == [6, 7, 8]
        await scripted.commit(1, [6, 20])  # one accepted, then the target's own
        assert await scripted.grown(1) == [21, 22, 23]
        await scripted.commit(1, [30])  # none accepted
        assert await scripted.grown(1) == [31, 32, 33]


async def test_run_ahead_follows_the_window_and_survives_a_commit_that_agrees() -> None:
    async with draft_service(ScriptedProposer(counting)) as drafter, target(drafter) as scripted:
        session = await scripted.open(1, [1], window=3, run_ahead=5)
        assert await scripted.grown(1) == [2, 3, 4, 5, 6, 7, 8, 9]
        sent = [(list(grow.token_ids), grow.complete) for grow in session.grows]
        assert sent == [([2, 3, 4], False), ([5, 6, 7], False), ([8, 9], True)]
        await scripted.commit(1, [2, 3, 4, 5])
        assert session.chain == [6, 7, 8, 9]  # there already, before any answer
        assert await scripted.grown(1) == [6, 7, 8, 9, 10, 11, 12, 13]
        assert [t for grow in session.grows[3:] for t in grow.token_ids] == [10, 11, 12, 13]


async def test_run_ahead_that_was_not_sent_before_a_commit_is_sent_after_it() -> None:
    proposer = Gated()
    async with draft_service(proposer) as drafter, target(drafter) as scripted:
        session = await scripted.open(1, [1], window=3, run_ahead=4)
        for _ in range(5):
            await proposer.step_begins()
            proposer.gate.release()
        await proposer.step_begins()  # 2 to 4 were sent; 5 and 6 are in the tree, 7 is on its way
        await scripted.until(lambda: session.chain == [2, 3, 4])
        await scripted.commit(1, [2, 3])
        await drafter.until(lambda: drafter.service.worker.num_waiting == 1)  # it has arrived
        proposer.gate.release(10)
        assert await scripted.grown(1) == [4, 5, 6, 7, 8, 9, 10]


async def test_a_commit_that_overtakes_a_step_takes_effect_in_the_next() -> None:
    proposer = Gated()
    async with draft_service(proposer) as drafter, target(drafter) as scripted:
        session = await scripted.open(1, [1], window=2)
        await proposer.step_begins()
        await scripted.commit(1, [10])
        await drafter.until(lambda: drafter.service.worker.num_waiting == 1)  # it has arrived
        proposer.gate.release(10)
        assert await scripted.grown(1) == [11, 12]
        assert [list(grow.token_ids) for grow in session.grows] == [[11, 12]]


async def test_a_repeated_commit_changes_nothing_and_is_answered() -> None:
    async with draft_service(ScriptedProposer(counting)) as drafter, target(drafter) as scripted:
        session = await scripted.open(1, [1], window=3)
        await scripted.grown(1)
        await scripted.commit(1, [2, 9])
        assert await scripted.grown(1) == [10, 11, 12]
        await scripted.commit(1, [2, 9], base_length=1)
        await scripted.until(lambda: len(session.grows) == 3)
        assert not session.grows[-1].node_ids
        assert session.grows[-1].complete
        await scripted.commit(1, [9, 10, 11, 12, 13], base_length=2)  # overlapping, as after a loss
        assert await scripted.grown(1) == [14, 15, 16]


async def test_a_gap_is_answered_with_the_length_that_is_held() -> None:
    async with draft_service(ScriptedProposer(counting)) as drafter, target(drafter) as scripted:
        session = await scripted.open(1, [1, 2], window=2)
        await scripted.grown(1)
        session.tree.commit(2, [3, 4, 5])
        await scripted.commit(1, [6])
        resync = await scripted.resynced(1)
        assert (resync.held_length, resync.refused) == (2, False)
        await scripted.commit(1, session.tree.token_ids[2:], base_length=2)
        assert await scripted.grown(1) == [7, 8]


async def test_a_commit_for_an_unknown_session_asks_for_an_open() -> None:
    async with draft_service(ScriptedProposer(counting)) as drafter, target(drafter) as scripted:
        scripted.open_message(5, [1])
        await scripted.commit(5, [2])
        resync = await scripted.resynced(5)
        assert (resync.held_length, resync.refused) == (0, False)
        await scripted.open(5, [1, 2], window=2)
        assert await scripted.grown(5) == [3, 4]


async def test_opening_again_replaces_a_session_and_never_reuses_its_ids() -> None:
    async with draft_service(ScriptedProposer(counting)) as drafter, target(drafter) as scripted:
        first = await scripted.open(1, [1], window=3)
        await scripted.grown(1)
        second = await scripted.open(1, [50], window=3)
        assert await scripted.grown(1) == [51, 52, 53]
        assert min(second.grows[-1].node_ids) > max(first.grows[-1].node_ids)


async def test_a_closed_session_is_forgotten() -> None:
    proposer = ScriptedProposer(counting)
    async with draft_service(proposer) as drafter, target(drafter) as scripted:
        await scripted.open(1, [1])
        await scripted.grown(1)
        await scripted.close(1)
        await scripted.close(99)
        scripted.open_message(1, [1])
        await scripted.commit(1, [2])
        assert (await scripted.resynced(1)).held_length == 0
        assert not proposer.held


async def test_a_chain_ends_with_the_token_that_is_not_probable_enough() -> None:
    async with (
        draft_service(sure_of(0, -0.1, -0.2, -2.0, -0.1, -0.1)) as drafter,
        target(drafter) as scripted,
    ):
        await scripted.open(1, [1], window=5, confidence_threshold=0.5)
        assert await scripted.grown(1) == [2, 3, 4]
        await scripted.open(2, [1], window=5)
        assert await scripted.grown(2) == [2, 3, 4, 5, 6]


async def test_a_chain_ends_with_an_end_of_sequence() -> None:
    async with draft_service(ScriptedProposer(counting)) as drafter, target(drafter) as scripted:
        config = {"max_new_tokens": 100, "eos_token_id": [4, 90]}
        await scripted.open(1, [1], window=5, config=config)
        assert await scripted.grown(1) == [2, 3, 4]
        await scripted.commit(1, [2, 3, 4])
        assert await scripted.grown(1) == []
        # One in the prompt ends nothing.
        await scripted.open(2, [4], window=2, config=config)
        assert await scripted.grown(2) == [5, 6]


@pytest.mark.parametrize("config", [{"max_new_tokens": 4}, {"max_length": 6}])
async def test_a_chain_ends_one_before_the_last_token_which_is_always_the_targets(
    config: dict[str, object],
) -> None:
    async with draft_service(ScriptedProposer(counting)) as drafter, target(drafter) as scripted:
        await scripted.open(1, [1, 2], window=9, config=config)
        assert await scripted.grown(1) == [3, 4, 5]
        await scripted.commit(1, [3, 4, 5])
        assert await scripted.grown(1) == []


async def test_a_tree_has_no_more_nodes_than_granted() -> None:
    async with draft_service(ScriptedProposer(counting)) as drafter, target(drafter) as scripted:
        await scripted.open(1, [1], window=2, run_ahead=4, max_nodes=6)
        assert await scripted.grown(1) == [2, 3, 4, 5, 6, 7]


async def test_limits_of_a_commit_replace_those_before() -> None:
    async with draft_service(ScriptedProposer(counting)) as drafter, target(drafter) as scripted:
        await scripted.open(1, [1], window=2)
        assert await scripted.grown(1) == [2, 3]
        await scripted.commit(1, [2, 3, 4], limits=Limits(5, 5, MAX_NODES, 0.0))
        assert await scripted.grown(1) == [5, 6, 7, 8, 9]
        await scripted.commit(1, [7])
        assert await scripted.grown(1) == [8, 9, 10, 11, 12]


async def test_a_session_too_long_for_the_drafter_is_refused() -> None:
    settings = SessionSettings(max_length=8)
    async with (
        draft_service(ScriptedProposer(counting), sessions=settings) as drafter,
        target(drafter) as scripted,
    ):
        assert scripted.welcome is not None
        assert scripted.welcome.drafter.max_length == 8
        await scripted.open(1, list(range(9)))
        assert (await scripted.resynced(1)).refused
        await scripted.open(2, list(range(1, 7)), window=4)
        assert await scripted.grown(2) == [7, 8]  # to its own maximum, and no further
        await scripted.commit(2, [7, 8])
        assert await scripted.grown(2) == []
        await scripted.commit(2, [9])
        resync = await scripted.resynced(2)
        assert resync.refused
        assert "8 tokens" in resync.reason


def broken_open(**fields: Any) -> draft_pb2.Open:
    opened = draft_pb2.Open(
        session=1,
        token_ids=[1, 2, 3],
        num_prompt_tokens=3,
        limits=draft_pb2.Limits(window=2, depth=2, max_nodes=2),
    )
    for name, value in fields.items():
        if name == "limits" and value is None:
            opened.ClearField("limits")
        elif name in ("limits", "generation_config"):
            getattr(opened, name).MergeFrom(value)
        elif name == "token_ids":
            opened.token_ids[:] = value
        else:
            setattr(opened, name, value)
    return opened


def some_limits(**fields: Any) -> draft_pb2.Limits:
    return draft_pb2.Limits(**fields)


MALFORMED = {
    "token_ids: at least one": broken_open(token_ids=[], num_prompt_tokens=0),
    "token_ids: 50": broken_open(token_ids=[1, SMALL_VOCABULARY]),
    "token_ids: 4294967295": broken_open(token_ids=[2**32 - 1]),
    "num_prompt_tokens: 0": broken_open(num_prompt_tokens=0),
    "num_prompt_tokens: 4": broken_open(num_prompt_tokens=4),
    "sample_index": broken_open(sample_index=2**24),
    "draft_temperature: nan": broken_open(draft_temperature=float("nan")),
    "draft_temperature: -1": broken_open(draft_temperature=-1.0),
    "draft_temperature: inf": broken_open(draft_temperature=float("inf")),
    "limits: are missing": broken_open(limits=None),
    "limits: needed is": broken_open(limits=some_limits(window=3)),
    "got 2, 3, 2": broken_open(limits=some_limits(depth=3)),
    "confidence_threshold: nan": broken_open(limits=some_limits(confidence_threshold=float("nan"))),
    "generation_config: a value": broken_open(
        generation_config=from_json_dict({"watermarking_config": {"ngram_len": 10**9, "keys": [1]}})
    ),
    "confidence_threshold: 1.5": broken_open(limits=some_limits(confidence_threshold=1.5)),
}


@pytest.mark.parametrize("reason", MALFORMED)
async def test_an_open_that_makes_no_sense_is_refused_and_the_stream_goes_on(reason: str) -> None:
    async with (
        draft_service(ScriptedProposer(counting)) as drafter,
        target(drafter, vocab_size=SMALL_VOCABULARY) as scripted,
    ):
        scripted.open_message(1, [1])
        good = scripted.open_message(2, [1], window=2)
        await scripted.send(draft_pb2.SpeculateRequest(opens=[MALFORMED[reason], good]))
        resync = await scripted.resynced(1)
        assert resync.refused
        assert reason in resync.reason
        assert await scripted.grown(2) == [2, 3]


async def test_a_commit_that_makes_no_sense_ends_its_session_and_no_other() -> None:
    async with (
        draft_service(ScriptedProposer(counting)) as drafter,
        target(drafter, vocab_size=SMALL_VOCABULARY) as scripted,
    ):
        await scripted.open(1, [1], window=2)
        await scripted.open(2, [1], window=2)
        await scripted.commit(1, [SMALL_VOCABULARY], known=False)
        assert (await scripted.resynced(1)).refused
        await scripted.commit(2, [5])
        assert await scripted.grown(2) == [6, 7]
        assert drafter.service.worker.num_sessions == 1


async def test_a_target_holds_no_more_sessions_than_its_quota() -> None:
    settings = SessionSettings(max_sessions_per_target=2)
    async with (
        draft_service(ScriptedProposer(counting), sessions=settings) as drafter,
        target(drafter) as scripted,
        target(drafter) as other,
    ):
        assert scripted.welcome is not None
        assert scripted.welcome.drafter.max_sessions == 2
        await scripted.open(1, [1], window=2)
        await scripted.open(2, [2], window=2)
        await scripted.open(3, [3], window=2)
        assert (await scripted.resynced(3)).refused
        assert await scripted.grown(1) == [2, 3]
        await other.open(3, [3], window=2)
        assert await other.grown(3) == [4, 5]
        await scripted.close(1)
        await scripted.open(4, [4], window=2)
        assert await scripted.grown(4) == [5, 6]


async def test_the_least_recently_used_session_makes_room_and_can_come_back() -> None:
    settings = SessionSettings(max_sessions=2, idle_seconds=0.0)
    async with (
        draft_service(ScriptedProposer(counting), sessions=settings) as drafter,
        target(drafter) as scripted,
        target(drafter) as other,
    ):
        for number in (1, 2):
            await scripted.open(number, [number], window=2)
            await scripted.grown(number)
        await scripted.commit(1, [9])
        await scripted.grown(1)
        await other.open(1, [30], window=2)
        assert await other.grown(1) == [31, 32]
        resync = await scripted.resynced(2)
        assert (resync.held_length, resync.refused) == (0, False)
        await scripted.open(2, [2], window=2)
        assert await scripted.grown(2) == [3, 4]
        assert drafter.metrics.sessions_evicted._value.get() == 2


async def test_sessions_in_use_are_not_pushed_out() -> None:
    settings = SessionSettings(max_sessions=1, idle_seconds=3600.0)
    async with (
        draft_service(ScriptedProposer(counting), sessions=settings) as drafter,
        target(drafter) as scripted,
    ):
        await scripted.open(1, [1], window=2)
        await scripted.grown(1)
        await scripted.open(2, [2], window=2)
        assert (await scripted.resynced(2)).refused
        await scripted.commit(1, [2])
        assert await scripted.grown(1) == [3, 4]


async def test_a_full_cache_costs_a_session_its_place_and_nobody_an_error() -> None:
    settings = SessionSettings(idle_seconds=0.0)
    async with (
        draft_service(ScriptedProposer(counting, capacity=40), sessions=settings) as drafter,
        target(drafter) as scripted,
    ):
        for number in range(1, 5):  # the third does not fit beside two
            await scripted.open(number, list(range(15)), window=3)
            assert await scripted.grown(number) == [15, 16, 17]
        for number in (1, 2):
            assert not (await scripted.resynced(number)).refused
        await scripted.commit(4, [20])
        assert await scripted.grown(4) == [21, 22, 23]


async def test_while_all_are_in_use_a_full_cache_costs_the_newest_its_place() -> None:
    settings = SessionSettings(idle_seconds=3600.0)
    async with (
        draft_service(ScriptedProposer(counting, capacity=40), sessions=settings) as drafter,
        target(drafter) as scripted,
    ):
        for number in (1, 2):
            await scripted.open(number, list(range(15)), window=3)
            await scripted.grown(number)
        await scripted.open(3, list(range(15)), window=3)
        assert (await scripted.resynced(3)).refused
        for number in (1, 2):
            await scripted.commit(number, [15])
            assert await scripted.grown(number) == [16, 17, 18]


async def test_targets_do_not_see_each_other() -> None:
    proposer = ScriptedProposer(counting)
    async with draft_service(proposer) as drafter, target(drafter) as first:
        async with target(drafter) as second:
            await first.open(1, [1], window=2)
            await second.open(1, [100], window=2)
            assert await first.grown(1) == [2, 3]
            assert await second.grown(1) == [101, 102]
            await second.send(draft_pb2.SpeculateRequest(hello=draft_pb2.Hello()))
            await second.until_ended()
        await first.commit(1, [50])
        assert await first.grown(1) == [51, 52]
        assert [key.number for key in proposer.held] == [1]


async def test_a_target_that_dies_frees_its_sessions() -> None:
    proposer = ScriptedProposer(counting)
    async with draft_service(proposer) as drafter, target(drafter) as survivor:
        await survivor.open(1, [1], window=2)
        await survivor.grown(1)
        async with target(drafter) as dying:
            opens = [dying.open_message(i, [i], window=2) for i in range(1, 6)]
            await dying.send(draft_pb2.SpeculateRequest(opens=opens))
            await dying.grown(5)
            assert len(proposer.held) == 6
        # The end of the other stream is taken in before what the survivor says next is answered.
        await drafter.until(lambda: drafter.metrics.num_links._value.get() == 1)
        await survivor.commit(1, [9])
        assert await survivor.grown(1) == [10, 11]
        assert len(proposer.held) == drafter.service.worker.num_sessions == 1


async def test_a_target_that_ends_its_stream_properly_is_let_go() -> None:
    async with draft_service(ScriptedProposer(counting)) as drafter, target(drafter) as scripted:
        await scripted.open(1, [1], window=2)
        await scripted.grown(1)
        await scripted.call.done_writing()
        await scripted.until_ended()
        assert await scripted.call.code() is grpc.StatusCode.OK


async def test_one_sessions_failure_is_not_the_others() -> None:
    def follow(tokens: Sequence[int]) -> int:
        if 13 in tokens:
            raise ZeroDivisionError("a bug that this sequence meets")
        return tokens[-1] + 1

    async with draft_service(ScriptedProposer(follow)) as drafter, target(drafter) as scripted:
        opens = [scripted.open_message(i, [i], window=3) for i in (1, 12, 20)]
        await scripted.send(draft_pb2.SpeculateRequest(opens=opens))
        assert await scripted.grown(1) == [2, 3, 4]
        assert await scripted.grown(20) == [21, 22, 23]
        resync = await scripted.resynced(12)
        assert resync.refused
        assert "bug" not in resync.reason


async def test_forwards_never_run_on_the_event_loop() -> None:
    proposer = Gated()
    async with draft_service(proposer) as drafter, target(drafter) as scripted:
        await scripted.open(1, [1], window=2)
        await proposer.step_begins()
        # The step hangs; the loop does not.
        described = await scripted.stub.Describe(draft_pb2.DescribeRequest(), timeout=TIMEOUT)
        assert described.num_sessions == 1
        assert described.drafter == scripted.welcome_drafter
        assert described.min_protocol_version <= described.max_protocol_version
        proposer.gate.release(10)
        assert await scripted.grown(1) == [2, 3]
        assert threading.current_thread().name not in proposer.threads


async def send_often(
    scripted: ScriptedTarget, frame: draft_pb2.SpeculateRequest, *, times: int
) -> None:
    for _ in range(times):
        await scripted.call.write(frame)


async def test_a_target_that_floods_is_held_back_by_its_own_stream() -> None:
    proposer = Gated()
    async with (
        draft_service(proposer) as drafter,
        target(drafter) as flooding,
        target(drafter) as other,
    ):
        await flooding.open(1, [1], window=1)
        await proposer.step_begins()
        commit = draft_pb2.Commit(session=1, base_length=1, token_ids=[2] * 900)
        frame = draft_pb2.SpeculateRequest(commits=[commit] * 200)  # some 180 kB each
        with pytest.raises(TimeoutError):  # writing blocks long before a thousand frames
            await asyncio.wait_for(send_often(flooding, frame, times=1000), timeout=1.0)
        assert drafter.service.worker.num_waiting <= MAX_FRAMES_AHEAD + 1
        await other.open(1, [5], window=1)
        proposer.gate.release(10)
        assert await other.grown(1) == [6]


async def test_a_killed_drafter_can_be_replaced_by_another_at_the_same_address() -> None:
    proposer = ScriptedProposer(counting)
    async with draft_service(proposer) as drafter, target(drafter) as scripted:
        await scripted.open(1, [1], window=3)
        assert await scripted.grown(1) == [2, 3, 4]
        port = drafter.port
        await drafter.service.kill()
        await scripted.until_ended()
        assert await scripted.call.code() in (
            grpc.StatusCode.UNAVAILABLE,
            grpc.StatusCode.CANCELLED,
        )
    again = ServerSettings(port=port)
    async with (
        draft_service(ScriptedProposer(counting), server=again) as drafter,
        target(drafter) as scripted,
    ):
        await scripted.open(1, [1, 2, 3, 4, 5], window=3)
        assert await scripted.grown(1) == [6, 7, 8]


async def test_a_drafter_that_drains_answers_what_it_was_asked_then_ends_the_links() -> None:
    proposer = Gated()
    async with draft_service(proposer) as drafter, target(drafter) as scripted:
        await scripted.open(1, [1], window=2)
        await proposer.step_begins()
        stopping = asyncio.create_task(drafter.service.stop())
        proposer.gate.release(10)
        assert await scripted.grown(1) == [2, 3]
        await scripted.until_ended()
        assert await scripted.call.code() is grpc.StatusCode.UNAVAILABLE
        async with asyncio.timeout(TIMEOUT):
            await stopping


async def test_a_drafter_that_drains_takes_no_new_links() -> None:
    proposer = Gated()
    async with draft_service(proposer) as drafter, target(drafter) as scripted:
        await scripted.open(1, [1], window=1)
        await proposer.step_begins()
        stopping = asyncio.create_task(drafter.service.stop())
        async with target(drafter, hello=False) as late:
            with pytest.raises(LinkEnded) as refused:
                await late.hello()
            assert refused.value.code is grpc.StatusCode.UNAVAILABLE
        proposer.gate.release(10)
        async with asyncio.timeout(TIMEOUT):
            await stopping


async def test_many_sessions_share_steps_and_all_get_their_windows() -> None:
    proposer = ScriptedProposer(counting)
    step = StepSettings(max_num_seqs=7, max_num_batched_tokens=32)
    async with (
        draft_service(proposer, step=step) as drafter,
        target(drafter, vocab_size=10_000) as scripted,
    ):
        prompts = {i: list(range(i, i + 1 + 37 * (i % 5))) for i in range(1, 41)}
        opens = [scripted.open_message(i, p, window=3, run_ahead=2) for i, p in prompts.items()]
        await scripted.send(draft_pb2.SpeculateRequest(opens=opens))
        for i, prompt in prompts.items():
            assert await scripted.grown(i) == [prompt[-1] + k for k in range(1, 6)]
        assert max(len(shares) for shares in proposer.steps) == 7
        assert max(sum(s.num_rows for s in shares) for shares in proposer.steps) <= 32 + 7 * 64


def metric(drafter: RunningDrafter, name: str) -> float:
    """The value of a counter or gauge without labels."""
    value: float = getattr(drafter.metrics, name)._value.get()
    return value


async def test_what_happens_is_counted() -> None:
    async with draft_service(ScriptedProposer(counting)) as drafter, target(drafter) as scripted:
        await scripted.open(1, [1], window=3)
        await scripted.grown(1)
        await scripted.commit(1, [2, 3])
        await scripted.grown(1)
        assert metric(drafter, "num_sessions") == metric(drafter, "sessions_opened") == 1
        assert metric(drafter, "committed_tokens") == 2
        assert metric(drafter, "proposed_tokens") == 5
        await scripted.commit(1, [9], base_length=77, known=False)
        await scripted.resynced(1)
        assert metric(drafter, "resyncs") == 1
