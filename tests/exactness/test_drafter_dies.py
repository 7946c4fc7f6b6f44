"""A drafter that dies at any moment costs speed, never text, and is used again once it is back."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import NamedTuple

import pytest
from draft.harness import RunningDrafter
from exactness.link_proxy import Death, DiesAfter, Script, link_proxy
from exactness.loop_thread import ServiceThreads
from exactness.model_pairs import ModelPair
from exactness.option_mixes import cases
from exactness.reference import Reference
from exactness.running import (
    PLAIN,
    SYNCHRONOUS,
    Request,
    num_accepted,
    outcome,
    target,
    wait_until,
)
from outrider_client import DraftLinkState, SpeculationConfig

REQUEST = Request(
    [3, 1, 4, 1, 5, 9, 2, 6],
    {
        "max_new_tokens": 20,
        "do_sample": True,
        "num_assistant_tokens": 4,
        "num_assistant_tokens_schedule": "constant",
        "assistant_confidence_threshold": 0.0,
    },
    seed=2024,
)

NO_STALL = 20.0
"""Seconds, far below the draft timeout of a minute: nobody has waited for the dead."""

DEATHS = list(Death)


class WholeRun(NamedTuple):
    """What is there to interrupt."""

    outcome: list[tuple[object, ...]]
    num_requests: int
    num_responses: int


class Rig(NamedTuple):
    """A pair, its drafter, and where proxies and targets live."""

    threads: ServiceThreads
    pair: ModelPair
    draft: RunningDrafter


@pytest.fixture(scope="module")
def rig(threads: ServiceThreads, pair: ModelPair, model_draft: RunningDrafter) -> Rig:
    return Rig(threads, pair, model_draft)


@pytest.fixture(scope="module")
def whole_run(rig: Rig) -> WholeRun:
    with (
        rig.threads.drafters.entered(link_proxy(rig.draft.address)) as proxy,
        target(rig.threads, rig.pair.target, drafts=[proxy.address]) as running,
    ):
        plain = outcome(running.generate(REQUEST, PLAIN))
        requests, responses = proxy.links[0].num_requests, proxy.links[0].num_responses
        assert (requests, responses) == (1, 1)  # hello and welcome
        completion = running.generate(REQUEST, SYNCHRONOUS)
        assert outcome(completion) == plain
        assert 0 < num_accepted([completion]) < completion.speculation.num_draft_tokens
        return WholeRun(plain, proxy.links[0].num_requests, proxy.links[0].num_responses)


def assert_survived(rig: Rig, whole: WholeRun, script: DiesAfter, *, early: bool) -> None:
    """Serve a request while the first link plays a script, and another one afterwards.

    Args:
        rig: The pair and its drafter.
        whole: The undisturbed run.
        script: How the first link dies.
        early: The link dies before it is of any use.
    """
    with (
        rig.threads.drafters.entered(
            link_proxy(rig.draft.address, lambda link: Script() if link else script)
        ) as proxy,
        target(
            rig.threads, rig.pair.target, drafts=[proxy.address], wait_for_links=not early
        ) as running,
    ):
        started = time.monotonic()
        completion = running.generate(REQUEST, SYNCHRONOUS)
        assert time.monotonic() - started < NO_STALL
        assert outcome(completion) == whole.outcome
        wait_until(lambda: script.died)
        wait_until(lambda: len(proxy.links) > 1)
        running.wait_for_links()
        again = running.generate(REQUEST, SYNCHRONOUS)
        assert outcome(again) == whole.outcome
        assert num_accepted([again]) > 0
        running.assert_nothing_left()


ALL_DEATHS = [
    pytest.param(0, id="in turn"),
    *(
        pytest.param(turn, id=f"in turn from {turn}", marks=pytest.mark.slow)
        for turn in range(1, len(DEATHS))
    ),
]


@pytest.mark.parametrize("turn", ALL_DEATHS)
def test_death_after_any_frame_of_the_drafter_leaves_the_text_as_it_is(
    rig: Rig, whole_run: WholeRun, turn: int
) -> None:
    assert whole_run.num_responses > 5
    for n in range(whole_run.num_responses + 1):
        script = DiesAfter(DEATHS[(n + turn) % len(DEATHS)], num_responses=n)
        assert_survived(rig, whole_run, script, early=n < 2)


@pytest.mark.parametrize("turn", ALL_DEATHS)
def test_death_at_any_frame_of_the_target_leaves_the_text_as_it_is(
    rig: Rig, whole_run: WholeRun, turn: int
) -> None:
    assert whole_run.num_requests > 5
    for n in range(1, whole_run.num_requests + 1):
        script = DiesAfter(DEATHS[(n + turn) % len(DEATHS)], num_requests=n)
        assert_survived(rig, whole_run, script, early=n < 2)


@pytest.mark.parametrize("death", DEATHS)
def test_drafting_resumes_in_the_very_stream_that_lost_its_drafter(
    rig: Rig, whole_run: WholeRun, death: Death
) -> None:
    script = DiesAfter(death, num_responses=4)
    with (
        rig.threads.drafters.entered(
            link_proxy(rig.draft.address, lambda link: Script() if link else script)
        ) as proxy,
        target(rig.threads, rig.pair.target, drafts=[proxy.address]) as running,
        ThreadPoolExecutor(1) as thread,
    ):
        running.gate.close_after(4)
        future = thread.submit(running.generate, REQUEST, SYNCHRONOUS)
        running.gate.wait_until_held()
        # The link dies and comes back while the engine computes one forward.
        wait_until(lambda: len(proxy.links) == 2)
        running.wait_for_links()
        running.gate.open()
        completion = future.result(NO_STALL)
        assert outcome(completion) == whole_run.outcome
        after = completion.speculation.rounds[5:]
        assert sum(each.num_draft_tokens for each in after) > 0
        assert sum(each.num_accepted_tokens for each in after) > 0
        running.assert_nothing_left()


def test_a_target_begins_without_its_drafter_and_uses_it_once_it_comes(
    rig: Rig, whole_run: WholeRun
) -> None:
    dead = [True]

    class Sleeping(Script):
        def begun(self) -> None:
            if dead[0]:
                DiesAfter(Death.ABORT, num_responses=0).begun()

    with (
        rig.threads.drafters.entered(link_proxy(rig.draft.address, lambda _: Sleeping())) as proxy,
        target(
            rig.threads, rig.pair.target, drafts=[proxy.address], wait_for_links=False
        ) as running,
    ):
        wait_until(lambda: len(proxy.links) > 0)
        without = running.generate(REQUEST, SYNCHRONOUS)
        assert without.speculation.num_draft_tokens == 0
        assert running.client.server_info().draft_links[0].state is DraftLinkState.CONNECTING
        assert running.client.server_info().draft_links[0].reason
        dead[0] = False
        running.wait_for_links()
        with_drafter = running.generate(REQUEST, SYNCHRONOUS)
        assert with_drafter.speculation.num_accepted_tokens > 0
        assert outcome(without) == outcome(with_drafter) == whole_run.outcome


def test_the_sessions_of_a_dead_drafter_move_to_another(rig: Rig) -> None:
    def dies_for_good(link: int) -> Script:
        return DiesAfter(Death.CUT, num_responses=0 if link else 6)

    requests = [
        replace(case.request, options={**case.request.options, "num_assistant_tokens": 3})
        for case in cases(8, seed=7)
    ]
    with (
        rig.threads.drafters.entered(link_proxy(rig.draft.address, dies_for_good)) as mortal,
        rig.threads.drafters.entered(link_proxy(rig.draft.address)) as survivor,
        target(rig.threads, rig.pair.target, drafts=[mortal.address, survivor.address]) as running,
    ):
        plain = [outcome(running.generate(request, PLAIN)) for request in requests]
        moved = running.generate_together(requests, SYNCHRONOUS)
        assert [outcome(each) for each in moved] == plain
        assert num_accepted(moved) > 0
        # Both were in use; then one was gone and the other went on.
        assert mortal.links[0].num_responses == 6
        wait_until(lambda: len(mortal.links) > 1)
        assert len(survivor.links) == 1
        before = survivor.links[0].num_responses
        later = running.generate_together(requests[:4], SYNCHRONOUS)
        assert [outcome(each) for each in later] == plain[:4]
        assert num_accepted(later) > 0
        assert survivor.links[0].num_responses > before
        running.assert_nothing_left()


def test_adaptive_pacing_survives_death_as_well(
    rig: Rig, lookup_draft: RunningDrafter, reference: Reference
) -> None:
    def dies_once(link: int) -> Script:
        return Script() if link else DiesAfter(Death.CUT, num_responses=6)

    request = Request([7, 8, 9] * 5, {"max_new_tokens": 32})
    expected = reference.greedy(request.prompt, request.options)
    with (
        rig.threads.drafters.entered(link_proxy(lookup_draft.address, dies_once)) as proxy,
        target(rig.threads, rig.pair.target, drafts=[proxy.address]) as running,
    ):

        def drafted_by_the_second_life() -> bool:
            second_life = len(proxy.links) > 1
            completion = running.generate(request, SpeculationConfig(run_ahead=8))
            assert completion.token_ids == expected
            return second_life and completion.speculation.num_accepted_tokens > 0

        wait_until(drafted_by_the_second_life)
        assert proxy.links[0].num_responses == 6
