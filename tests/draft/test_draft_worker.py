"""The drafting thread and the links it delivers to: nothing piles up, nothing hangs."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from typing import cast

import grpc
import pytest
from draft.harness import ScriptedProposer, counting, draft_service, target
from outrider_conformance.target import TIMEOUT
from outrider_draft import link as links
from outrider_draft import worker as workers
from outrider_draft.engine import DraftEngine
from outrider_draft.line import Line
from outrider_draft.link import Link, LinkClosed
from outrider_draft.proposer import Outcome, Share
from outrider_draft.service import DraftingStopped
from outrider_draft.updates import Grown, Message, SessionKey
from outrider_draft.worker import DraftWorker
from outrider_runtime.errors import Draining, Overloaded

MESSAGE = Grown(SessionKey(1, 1), 1, (), complete=True)


async def test_messages_that_wait_travel_together_up_to_a_limit() -> None:
    link = Link(1)
    link.post([MESSAGE] * (links.MAX_MESSAGES_PER_FRAME + 1))
    assert len(await link.next_messages()) == links.MAX_MESSAGES_PER_FRAME
    assert len(await link.next_messages()) == 1


async def test_what_was_queued_is_sent_before_the_end() -> None:
    link = Link(1)
    link.post([MESSAGE])
    link.end(Draining())
    link.end()  # the first end counts
    link.post([MESSAGE])  # too late
    assert await link.next_messages() == [MESSAGE]
    with pytest.raises(Draining):
        await link.next_messages()


async def test_whoever_waits_for_messages_hears_of_the_end() -> None:
    link = Link(1)
    waiting = asyncio.create_task(link.next_messages())
    await asyncio.sleep(0)
    link.end()
    with pytest.raises(LinkClosed):
        await waiting


async def test_a_target_that_does_not_read_loses_its_link(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "MAX_UNREAD_MESSAGES", 10)
    link = Link(1)
    link.post([MESSAGE] * 10)
    link.post([MESSAGE])
    with pytest.raises(Overloaded):
        await link.next_messages()


async def test_reading_waits_for_the_drafting_thread() -> None:
    link = Link(1)
    for _ in range(links.MAX_FRAMES_AHEAD):
        await link.frame_granted()
    waiting = asyncio.create_task(link.frame_granted())
    await asyncio.sleep(0)
    assert not waiting.done()
    link.frame_taken()
    async with asyncio.timeout(TIMEOUT):
        await waiting


class Doomed(ScriptedProposer):
    """Breaks outside of any session's step."""

    def pending(self, line: Line) -> int:
        if 13 in line.tokens:
            raise ZeroDivisionError
        return super().pending(line)


async def test_a_thread_that_cannot_go_on_takes_the_service_down_with_it() -> None:
    """Rather that than a drafter which serves and never answers: orchestrators start it again."""
    async with draft_service(Doomed(counting)) as drafter, target(drafter) as scripted:
        serving = asyncio.create_task(drafter.service.serve_until_signalled())
        await scripted.open(1, [1], window=1)
        assert await scripted.grown(1) == [2]
        await scripted.open(2, [13])
        async with asyncio.timeout(TIMEOUT):
            with pytest.raises(DraftingStopped):
                await serving
        await scripted.until_ended()
        assert await scripted.call.code() is not grpc.StatusCode.OK


async def test_one_thread_does_all_the_drafting() -> None:
    threads: set[int] = set()

    class Observed(ScriptedProposer):
        def extend(self, shares: Sequence[Share]) -> list[Outcome]:
            threads.add(threading.get_ident())
            return super().extend(shares)

    async with (
        draft_service(Observed(counting)) as drafter,
        target(drafter) as first,
        target(drafter) as second,
    ):
        for number in range(3):
            await first.open(number, [number], window=2)
            await second.open(number, [number], window=2)
        for number in range(3):
            await first.grown(number)
            await second.grown(number)
    assert len(threads) == 1
    assert threading.get_ident() not in threads


class AlwaysGrowing:
    """An engine that has something to say after its first step, and could grow for ever."""

    has_growth = True

    def __init__(self, *, is_waited_for: bool) -> None:
        self.is_waited_for = is_waited_for
        self.steps = threading.Semaphore(0)
        self._messages: list[Message] = [MESSAGE]

    def step(self) -> None:
        self.steps.release()

    def take_messages(self) -> list[Message]:
        messages: list[Message] = list(self._messages)
        self._messages.clear()
        return messages


@pytest.mark.parametrize("is_waited_for", [False, True])
def test_running_ahead_lets_an_answer_leave_first_but_not_news_wait(
    is_waited_for: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "_COURTESY", 60.0)
    engine = AlwaysGrowing(is_waited_for=is_waited_for)
    delivered = threading.Event()
    worker = DraftWorker(
        cast("DraftEngine", engine), deliver=lambda _: delivered.set(), failed=lambda: None
    )
    worker.start()
    assert delivered.wait(TIMEOUT)
    assert engine.steps.acquire(timeout=TIMEOUT)
    assert engine.steps.acquire(timeout=0.2) is is_waited_for
    worker.submit([])
    assert engine.steps.acquire(timeout=TIMEOUT)
    worker.stop()
