"""A drafter that is late, confused, hostile or unfit: the text is what it is without one."""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import pytest
from draft.harness import RunningDrafter
from draft.hostile import ATTACKS, AdversarialDrafter, Greeting, serving
from exactness.link_proxy import Request as Frame
from exactness.link_proxy import Response, Script, link_proxy
from exactness.loop_thread import ServiceThreads
from exactness.model_pairs import ModelPair, byte_tokenizer, save
from exactness.option_mixes import cases
from exactness.reference import Reference
from exactness.running import (
    PLAIN,
    SYNCHRONOUS,
    Request,
    RunningTarget,
    draft_service,
    model_drafter,
    num_accepted,
    outcome,
    target,
    wait_until,
)
from outrider_client import DraftLinkState, SpeculationConfig
from outrider_target import service as target_service_module

IMPATIENT = SpeculationConfig(pacing="synchronous", draft_timeout_ms=50, report_rounds=True)
"""Waits a moment for every answer; after three in vain not at all."""

NO_STALL = 20.0

FOREIGN_CORPUS = """
Whoever hath her wish, thou hast thy Will, and Will to boot, and Will in overplus;
More than enough am I that vex thee still, to thy sweet will making addition thus.
Wilt thou, whose will is large and spacious, not once vouchsafe to hide my will in thine?
"""


class Late(Script):
    """Every answer comes when the target has asked so many times more: always too late."""

    def __init__(self, by: int) -> None:
        super().__init__()
        self._by = by
        self._held: deque[tuple[int, Response]] = deque()

    def request(self, frame: Frame) -> Iterable[Frame]:
        passed = super().request(frame)
        while self._held and self._held[0][0] <= self.num_requests:
            self.send(self._held.popleft()[1])
        return passed

    def response(self, frame: Response) -> Iterable[Response]:
        if frame.HasField("welcome"):
            return super().response(frame)
        self._held.append((self.num_requests + self._by, frame))
        return []


class Slow(Script):
    """Every answer takes its time."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self._seconds = seconds

    def response(self, frame: Response) -> Iterable[Response]:
        if frame.HasField("welcome"):
            return super().response(frame)
        asyncio.get_running_loop().call_later(self._seconds, self.send, frame)
        return []


class Confused(Script):
    """Frames come twice, or some frames later, or never."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._chance = random.Random(seed)
        self._held: list[Response] = []
        self.num_confused = 0

    def response(self, frame: Response) -> Iterable[Response]:
        passed = list(super().response(frame))
        if frame.HasField("welcome"):
            return passed
        match self._chance.choice(["on", "on", "twice", "later", "never"]):
            case "twice":
                passed *= 2
                self.num_confused += 1
            case "later":
                self._held += passed
                passed = []
                self.num_confused += 1
            case "never":
                passed = []
                self.num_confused += 1
            case _:
                self._chance.shuffle(self._held)
                passed += self._held
                self._held = []
        return passed


class Workload(NamedTuple):
    requests: Sequence[Request]
    plain: Sequence[list[tuple[object, ...]]]


@pytest.fixture(scope="module")
def plain_target(threads: ServiceThreads, pair: ModelPair) -> Iterator[RunningTarget]:
    with target(threads, pair.target) as running:
        yield running


@pytest.fixture(scope="module")
def work(plain_target: RunningTarget) -> Workload:
    requests = [with_window(case.request, 4) for case in cases(8, seed=11)]
    return Workload(requests, [outcome(plain_target.generate(each, PLAIN)) for each in requests])


def with_window(request: Request, window: int) -> Request:
    """The same request, which gets the same text, with another window."""
    windowed = {
        "num_assistant_tokens": window,
        "num_assistant_tokens_schedule": "constant",
        "assistant_confidence_threshold": 0.0,
    }
    return replace(request, options={**request.options, **windowed})


class Trouble(NamedTuple):
    """What goes wrong, and requests it goes wrong for."""

    make_script: Callable[[], Script]
    speculation: SpeculationConfig
    window: int = 12


# What comes twice or out of order counts as an offence, token by token, and too many offences end
# the link: a small window lets more of it happen.
TROUBLES = {
    "a round late": Trouble(lambda: Late(1), IMPATIENT),
    "three rounds late": Trouble(lambda: Late(3), IMPATIENT),
    "slow": Trouble(lambda: Slow(0.02), SYNCHRONOUS),
    "confused": Trouble(lambda: Confused(0), replace(IMPATIENT, draft_timeout_ms=250), window=2),
    "confused otherwise": Trouble(
        lambda: Confused(1), replace(IMPATIENT, draft_timeout_ms=250), window=2
    ),
}


@pytest.mark.parametrize("name", TROUBLES)
def test_late_and_confused_answers_change_nothing(
    name: str,
    threads: ServiceThreads,
    pair: ModelPair,
    perfect_draft: RunningDrafter,
    work: Workload,
) -> None:
    trouble = TROUBLES[name]
    requests = [with_window(request, trouble.window) for request in work.requests]
    proxied = link_proxy(perfect_draft.address, lambda _: trouble.make_script())
    with (
        threads.drafters.entered(proxied) as proxy,
        target(threads, pair.target, drafts=[proxy.address]) as running,
    ):

        def drafted_in_spite_of_it() -> bool:
            started = time.monotonic()
            completions = running.generate_together(requests, trouble.speculation)
            assert time.monotonic() - started < NO_STALL
            assert [outcome(each) for each in completions] == work.plain
            return num_accepted(completions) > 0

        # A busy machine may miss what comes late every time in one run, not in one after the other.
        wait_until(drafted_in_spite_of_it)
        if isinstance(script := proxy.links[0], Confused):
            assert script.num_confused > 0
        running.assert_nothing_left()


def test_a_network_that_stands_still_holds_no_stream_for_long(
    threads: ServiceThreads, pair: ModelPair, perfect_draft: RunningDrafter, reference: Reference
) -> None:
    request = Request([1, 2, 3], {"max_new_tokens": 40, "num_assistant_tokens": 2})
    expected = reference.greedy(request.prompt, {"max_new_tokens": 40})
    with (
        threads.drafters.entered(link_proxy(perfect_draft.address)) as proxy,
        target(threads, pair.target, drafts=[proxy.address]) as running,
        ThreadPoolExecutor(1) as thread,
    ):
        running.gate.close_after(4)
        future = thread.submit(running.generate, request, IMPATIENT)
        running.gate.wait_until_held()
        threads.drafters.loop.call_soon_threadsafe(proxy.cable.clog)
        running.gate.open()
        completion = future.result(NO_STALL)
        assert completion.token_ids == expected
        rounds = [each.num_draft_tokens for each in completion.speculation.rounds]
        assert sum(rounds[:4]) > 0
        assert rounds[-1] == 0
        assert running.client.server_info().draft_links[0].state is DraftLinkState.READY
        threads.drafters.loop.call_soon_threadsafe(proxy.cable.clear)

        def drafted_again() -> bool:
            again = running.generate(request, IMPATIENT)
            assert again.token_ids == expected
            return num_accepted([again]) > 0

        wait_until(drafted_again)


class OneTrick(AdversarialDrafter):
    """Plays one trick, in turn with well-formed nonsense; that comes first: a trick may end it."""

    def __init__(self, name: str) -> None:
        super().__init__(seed=3)
        self.repertoire = ["wrong_tokens", name]


@pytest.mark.parametrize("name", ATTACKS)
def test_a_drafter_that_breaks_a_rule_changes_nothing(
    name: str, threads: ServiceThreads, pair: ModelPair, work: Workload
) -> None:
    drafter = OneTrick(name)
    with (
        threads.drafters.entered(serving(drafter)) as hostile,
        target(threads, pair.target, drafts=[hostile.address]) as running,
    ):
        completions = running.generate_together(work.requests[:2], IMPATIENT)
        assert [outcome(each) for each in completions] == work.plain[:2]
        assert drafter.attacks[name] > 0
        assert drafter.num_proposed > 0
        running.assert_nothing_left()


@pytest.mark.parametrize(
    ("greeting", "reason"),
    [
        (Greeting.WRONG_VERSION, "version 9999"),
        (Greeting.NOT_A_WELCOME, "not a welcome"),
    ],
)
def test_a_drafter_with_a_wrong_greeting_is_refused_and_the_reason_is_told(
    greeting: Greeting, reason: str, threads: ServiceThreads, pair: ModelPair, work: Workload
) -> None:
    with (
        threads.drafters.entered(serving(AdversarialDrafter(greeting=greeting))) as hostile,
        target(threads, pair.target, drafts=[hostile.address], wait_for_links=False) as running,
    ):
        assert_refused(running, reason)
        completion = running.generate(work.requests[0], SYNCHRONOUS)
        assert outcome(completion) == work.plain[0]
        assert completion.speculation.num_draft_tokens == 0


def test_a_draft_service_refuses_a_target_of_another_protocol_and_the_reason_is_told(
    threads: ServiceThreads, pair: ModelPair, perfect_draft: RunningDrafter, work: Workload
) -> None:
    with (
        mock.patch.object(target_service_module, "PROTOCOL_VERSION", 9999),
        target(
            threads, pair.target, drafts=[perfect_draft.address], wait_for_links=False
        ) as running,
    ):
        assert_refused(running, "version 9999")
        completion = running.generate(work.requests[0], SYNCHRONOUS)
        assert outcome(completion) == work.plain[0]
        assert completion.speculation.num_draft_tokens == 0


def test_a_drafter_with_another_tokenizer_is_refused_and_the_other_one_drafts(
    threads: ServiceThreads,
    pair: ModelPair,
    reference: Reference,
    perfect_draft: RunningDrafter,
    work: Workload,
    tmp_path: Path,
) -> None:
    foreign = byte_tokenizer(FOREIGN_CORPUS)
    save(reference.model, foreign, tmp_path)
    with (
        draft_service(threads, model_drafter(tmp_path)) as unfit,
        target(
            threads,
            pair.target,
            drafts=[unfit.address, perfect_draft.address],
            wait_for_links=False,
        ) as running,
    ):
        running.wait_for_links(DraftLinkState.REFUSED, DraftLinkState.READY)
        assert "tokenizer" in running.client.server_info().draft_links[0].reason
        completions = running.generate_together(work.requests, SYNCHRONOUS)
        assert [outcome(each) for each in completions] == work.plain
        assert num_accepted(completions) > 0


def assert_refused(running: RunningTarget, reason: str) -> None:
    """The one link ends up refused, and `GetServerInfo` says why."""
    running.wait_for_links(DraftLinkState.REFUSED)
    (link,) = running.client.server_info().draft_links
    assert reason in link.reason
    assert link.num_sessions == 0
