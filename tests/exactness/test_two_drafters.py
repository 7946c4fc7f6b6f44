"""Two draft services, one of them killed and revived again and again under load."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
from draft.harness import RunningDrafter
from exactness.loop_thread import ServiceThreads
from exactness.model_pairs import ModelPair
from exactness.option_mixes import cases
from exactness.reference import Reference
from exactness.running import (
    SYNCHRONOUS,
    Request,
    RunningTarget,
    num_accepted,
    outcome,
    target,
    wait_until,
)
from outrider_client import DraftLinkState
from outrider_demo.processes import Service

OPTIONS = {"max_new_tokens": 40, "num_assistant_tokens": 4}
REQUESTS = [Request([token, token + 1, token + 2] * 5, OPTIONS) for token in range(5, 25)] + [
    case.request for case in cases(20, seed=11)
]

ALIVE = 1.0
"""Seconds that a revived drafter lives."""

DRAFTERS = [
    pytest.param("prompt lookup", 8.0, id="prompt lookup"),
    pytest.param("draft model", 120.0, id="draft model", marks=pytest.mark.soak),
]


def drafter(kind: str, pair: ModelPair, port: int = 0) -> Service:
    flags = ["--model", str(pair.draft), "--dtype", "float64"]
    if kind == "prompt lookup":
        flags = ["--method", "prompt-lookup"]
    return Service("outrider_draft", [*flags, "--port", str(port)])


class Flapping:
    """A draft service that is killed and revived at the same address until told to stop."""

    def __init__(self, kind: str, pair: ModelPair, first: Service) -> None:
        self.num_kills = 0
        self._kind = kind
        self._pair = pair
        self._current = first
        self._enough = threading.Event()
        self._thread = threading.Thread(target=self._flap)

    def start(self) -> None:
        self._thread.start()

    def settle(self) -> None:
        """Kill it no more; it is alive afterwards."""
        self._enough.set()
        self._thread.join()

    def stop(self) -> None:
        self.settle()
        self._current.stop()

    def _flap(self) -> None:
        port = int(self._current.address.rpartition(":")[2])
        while not self._enough.wait(ALIVE):
            self._current.kill()
            self.num_kills += 1
            self._current = drafter(self._kind, self._pair, port)
            self._current.start()


@contextmanager
def fed_by_two(
    threads: ServiceThreads, pair: ModelPair, kind: str
) -> Iterator[tuple[RunningTarget, Flapping]]:
    first = drafter(kind, pair)
    first.start()
    flapping = Flapping(kind, pair, first)
    with (
        drafter(kind, pair) as steady,
        target(threads, pair.target, drafts=[first.address, steady.address]) as running,
    ):
        flapping.start()
        try:
            yield running, flapping
        finally:
            flapping.stop()


def accepted(running: RunningTarget, requests: Sequence[Request]) -> int:
    return num_accepted(running.generate_together(requests, SYNCHRONOUS))


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("kind", "seconds"), DRAFTERS)
def test_no_request_fails_no_token_changes_and_speed_comes_back(
    threads: ServiceThreads,
    pair: ModelPair,
    reference: Reference,
    kind: str,
    seconds: float,
) -> None:
    with fed_by_two(threads, pair, kind) as (running, flapping):
        plain = [outcome(one) for one in running.generate_together(REQUESTS)]
        deadline = time.monotonic() + seconds
        meanwhile = 0
        while time.monotonic() < deadline or flapping.num_kills < 3:
            drafted = running.generate_together(REQUESTS, SYNCHRONOUS)
            assert [outcome(one) for one in drafted] == plain
            meanwhile += num_accepted(drafted)
        assert meanwhile > 0
        flapping.settle()
        running.wait_for_links()
        # Synchronous drafts are the same whoever makes them, so speed that came back is this:
        calm = accepted(running, REQUESTS)
        assert calm > 0
        assert accepted(running, REQUESTS) >= 0.9 * calm
        assert calm >= 0.9 * accepted_alone(threads, pair, kind)
        running.assert_nothing_left()
    repeating = REQUESTS[0]
    assert plain[0][0][0] == reference.greedy(repeating.prompt, {"max_new_tokens": 40})


def accepted_alone(threads: ServiceThreads, pair: ModelPair, kind: str) -> int:
    """What a single drafter that nobody disturbs brings."""
    with (
        drafter(kind, pair) as steady,
        target(threads, pair.target, drafts=[steady.address]) as running,
    ):
        return accepted(running, REQUESTS)


def test_a_drafter_is_found_by_name(
    threads: ServiceThreads, pair: ModelPair, lookup_draft: RunningDrafter
) -> None:
    port = lookup_draft.port
    with target(threads, pair.target, drafts=[f"dns:///localhost:{port}"]) as running:
        wait_until(lambda: link_at(running, f"127.0.0.1:{port}") is DraftLinkState.READY)
        assert accepted(running, REQUESTS[:1]) > 0


def link_at(running: RunningTarget, address: str) -> DraftLinkState | None:
    links = running.client.server_info().draft_links
    return next((link.state for link in links if link.address == address), None)
