"""A draft service in a process of its own, killed, restarted, and stopped in its tracks."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
from exactness.loop_thread import ServiceThreads
from exactness.model_pairs import ModelPair
from exactness.reference import Reference
from exactness.running import (
    SYNCHRONOUS,
    Request,
    RunningTarget,
    accepted_by_drafter,
    num_accepted,
    target,
    wait_until,
)
from outrider_client import DraftLinkState, GenerationConfig, SpeculationConfig
from outrider_demo.processes import Service

REQUEST = Request(
    [7, 8, 9] * 5,
    {
        "max_new_tokens": 60,
        "num_assistant_tokens": 3,
        "num_assistant_tokens_schedule": "constant",
        "assistant_confidence_threshold": 0.0,
    },
)
NUM_TOKENS = 60

DRAFT_TIMEOUT_MS = 400
LONGEST_GAP = 5.0
"""Seconds between two chunks: one wait in vain, and much patience with a busy machine."""

MOST_WAITS = 8
"""Chunks that may have come late: three waits in vain, and some patience again."""


def draft_process(flags: Sequence[str], port: int = 0) -> Service:
    """A draft service on a port, to be started."""
    return Service("outrider_draft", [*flags, "--port", str(port)])


@pytest.fixture(
    params=[
        "prompt lookup",
        # The same with a model; starting it twice takes long.
        pytest.param("draft model", marks=pytest.mark.slow),
    ]
)
def flags(request: pytest.FixtureRequest, pair: ModelPair) -> list[str]:
    """Which draft service runs."""
    if request.param == "prompt lookup":
        return ["--method", "prompt-lookup"]
    return ["--model", str(pair.draft), "--dtype", "float64"]


@pytest.fixture
def process(flags: list[str]) -> Iterator[Service]:
    with draft_process(flags) as running:
        yield running


@pytest.fixture
def fed_target(
    threads: ServiceThreads, pair: ModelPair, process: Service
) -> Iterator[RunningTarget]:
    with target(threads, pair.target, drafts=[process.address]) as running:
        yield running


@pytest.fixture
def expected(reference: Reference) -> list[int]:
    return reference.greedy(REQUEST.prompt, {"max_new_tokens": NUM_TOKENS})


def test_a_killed_and_restarted_draft_service_is_used_again_in_the_same_stream(
    process: Service, flags: list[str], fed_target: RunningTarget, expected: list[int]
) -> None:
    with ThreadPoolExecutor(1) as thread:
        fed_target.gate.close_after(5)
        future = thread.submit(fed_target.generate, REQUEST, SYNCHRONOUS)
        fed_target.gate.wait_until_held()
        process.kill()
        fed_target.wait_for_links(DraftLinkState.CONNECTING)
        # A few rounds without it, and the rest with its successor.
        fed_target.gate.close_after(5)
        fed_target.gate.wait_until_held()
        with draft_process(flags, int(process.address.rpartition(":")[2])) as successor:
            assert successor.address == process.address
            fed_target.wait_for_links()
            fed_target.gate.open()
            completion = future.result()
    assert completion.token_ids == expected
    rounds = [each.num_draft_tokens for each in completion.speculation.rounds]
    before, without, after = rounds[:5], rounds[6:10], rounds[11:]
    assert sum(before) > 0
    assert sum(without) == 0
    assert sum(after) > 0
    assert completion.speculation.num_accepted_tokens > 0
    fed_target.assert_nothing_left()


def test_prompt_lookup_drafts_on_when_the_draft_service_beside_it_is_killed(
    process: Service, fed_target: RunningTarget, expected: list[int]
) -> None:
    both = SpeculationConfig(method="combined", report_rounds=True)
    with ThreadPoolExecutor(1) as thread:
        fed_target.gate.close_after(5)
        future = thread.submit(fed_target.generate, REQUEST, both)
        fed_target.gate.wait_until_held()
        process.kill()
        fed_target.wait_for_links(DraftLinkState.CONNECTING)
        fed_target.gate.open()
        completion = future.result()
    assert completion.token_ids == expected
    without = [each.num_draft_tokens for each in completion.speculation.rounds[6:]]
    assert sum(without) > 0
    accepted = accepted_by_drafter([completion])
    assert accepted["prompt-lookup"] + accepted["suffix"] > 0
    fed_target.assert_nothing_left()


def test_a_draft_service_that_is_stopped_stalls_nobody_and_is_used_again_when_it_goes_on(
    process: Service, fed_target: RunningTarget, expected: list[int]
) -> None:
    impatient = SpeculationConfig(
        pacing="synchronous", draft_timeout_ms=DRAFT_TIMEOUT_MS, report_rounds=True
    )
    config = GenerationConfig(**REQUEST.options)
    gaps: list[float] = []
    fed_target.gate.close_after(5)
    with fed_target.client.stream(list(REQUEST.prompt), config, speculation=impatient) as stream:
        try:
            last = time.monotonic()
            for number, _ in enumerate(stream):
                if number == 3:
                    os.kill(process.pid, signal.SIGSTOP)
                    fed_target.gate.open()
                now = time.monotonic()
                gaps.append(now - last)
                last = now
        finally:
            os.kill(process.pid, signal.SIGCONT)
    # It came to its end while the drafter stood still.
    completion = stream.final
    assert completion.token_ids == expected
    rounds = [each.num_draft_tokens for each in completion.speculation.rounds]
    assert sum(rounds[:4]) > 0
    assert sum(rounds[8:]) == 0
    assert max(gaps) < LONGEST_GAP
    assert sum(gap >= DRAFT_TIMEOUT_MS / 1000 for gap in gaps) <= MOST_WAITS

    def drafts_again() -> bool:
        again = fed_target.generate(REQUEST, impatient)
        assert again.token_ids == expected
        return num_accepted([again]) > 0

    wait_until(drafts_again)
    fed_target.assert_nothing_left()
