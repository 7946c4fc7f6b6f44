"""Whatever happens around them, survivors get the tokens of plain decoding, and nothing is left.

Faults of drafters and links are in tests/exactness; docs/reliability.md has the whole table.
"""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from outrider.v1.speculation_pb2 import SpeculationConfig
from service.asking import LOOKUP, PLAIN, ask, collect
from service.harness import Caller, RunningService
from service.refusals import refusal

POISON = [250, 1, 2]
"""A prompt that makes the forward fail."""

NUM_TOKENS = 400
DRAFTING: dict[str, Any] = {"num_assistant_tokens": 3, "num_assistant_tokens_schedule": "constant"}
SURVIVORS: list[dict[str, Any]] = [
    {"prompt": "abcabcab"},
    {"prompt": "xyzxyz", "do_sample": True, "top_k": 5},
    {"prompt": "once upon a time " * 3, "do_sample": True, "top_k": 3},
]
FORWARDS_MEANWHILE = 60
"""Fewer than survivors need: they are there before, during and after the fault."""

Fault = Callable[[RunningService, pytest.MonkeyPatch], None]


def survivors(speculation: SpeculationConfig) -> list[Any]:
    return [
        ask(**each, seed=5, max_new_tokens=NUM_TOKENS, speculation=speculation, **DRAFTING)
        for each in SURVIVORS
    ]


def a_deadline_storm(service: RunningService, monkeypatch: pytest.MonkeyPatch) -> None:
    chance = random.Random(1)
    with Caller(service.address) as caller, ThreadPoolExecutor(16) as threads:

        def hasty(seconds: float) -> grpc.StatusCode:
            call = caller.open(ask("abc", max_new_tokens=NUM_TOKENS), timeout=seconds)
            return refusal(lambda: list(call)).code

        codes = set(threads.map(hasty, [chance.uniform(0.001, 0.2) for _ in range(60)]))
    assert grpc.StatusCode.DEADLINE_EXCEEDED in codes
    assert codes <= {grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.RESOURCE_EXHAUSTED}


def clients_that_vanish(service: RunningService, monkeypatch: pytest.MonkeyPatch) -> None:
    for count in range(6):
        with Caller(service.address) as caller:
            calls = [caller.open(ask("abc", max_new_tokens=NUM_TOKENS)) for _ in range(3)]
            for call in calls[:count]:
                next(call)


def clients_that_never_read(service: RunningService, monkeypatch: pytest.MonkeyPatch) -> None:
    caller = Caller(service.address, grpc__http2__lookahead_bytes=1)
    calls = [caller.open(ask("abc", max_new_tokens=NUM_TOKENS)) for _ in range(3)]
    service.gate.let(FORWARDS_MEANWHILE)
    time.sleep(0.3)
    assert len(calls) == 3
    caller.channel.close()


def clients_that_send_garbage(service: RunningService, monkeypatch: pytest.MonkeyPatch) -> None:
    chance = random.Random(2)
    with grpc.insecure_channel(service.address) as channel:
        generate: Any = channel.unary_stream("/outrider.v1.GenerationService/Generate")
        for _ in range(100):
            with pytest.raises(grpc.RpcError) as caught:
                list(generate(b"\xff" + chance.randbytes(40), timeout=20))
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def a_fault_in_another_request(service: RunningService, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(batch: Any) -> None:
        if any(list(item.token_ids[:3]) == POISON for item in batch):
            raise RuntimeError("poisoned")

    monkeypatch.setattr(service.gate, "before", fail)
    with Caller(service.address) as caller:
        call = caller.open(ask(POISON, max_new_tokens=5))
        next(call)
        service.gate.let(FORWARDS_MEANWHILE)
        assert refusal(lambda: list(call)).code is grpc.StatusCode.INTERNAL


def a_clock_that_jumps(by: float) -> Fault:
    def jump(service: RunningService, monkeypatch: pytest.MonkeyPatch) -> None:
        now = time.time
        with Caller(service.address) as caller:
            # Sent before: gRPC's Python client reckons its deadlines by this very clock.
            call = caller.open(ask("abc", max_new_tokens=3, max_time=60.0))
            first = next(call)
            monkeypatch.setattr(time, "time", lambda: now() + by)
            service.gate.let(FORWARDS_MEANWHILE)
            answer = collect(itertools.chain([first], call))
        monkeypatch.undo()  # and it jumps back while survivors still run
        assert answer.finish_reasons == ["LENGTH"], "max_time is no matter of the wall clock"
        assert 0 <= answer.complete.usage.total_seconds < 60

    return jump


FAULTS: dict[str, Fault] = {
    "deadline storm": a_deadline_storm,
    "clients vanish": clients_that_vanish,
    "clients never read": clients_that_never_read,
    "clients send garbage": clients_that_send_garbage,
    "a fault in another request": a_fault_in_another_request,
    "the clock jumps a day ahead": a_clock_that_jumps(86_400),
    "the clock jumps a year back": a_clock_that_jumps(-365 * 86_400),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_survivors_lose_and_change_no_token_and_nothing_is_left(
    service: RunningService, fault: Fault, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Caller(service.address) as caller, ThreadPoolExecutor(len(SURVIVORS)) as threads:
        plain = [collect(caller.open(request)) for request in survivors(PLAIN)]
        with service.gate.held(after=10):
            calls = [caller.open(request) for request in survivors(LOOKUP)]
            answers = [threads.submit(collect, call) for call in calls]
            service.gate.wait_until_held()
            fault(service, monkeypatch)
            assert not any(answer.done() for answer in answers), "they outlive the fault"
        got = [answer.result() for answer in answers]
        caller.wait_until_idle()
    for answer, expected in zip(got, plain, strict=True):
        assert answer.token_ids == expected.token_ids
        assert len(answer.token_ids) == NUM_TOKENS
        assert expected.complete.speculation.num_draft_tokens == 0
        assert answer.complete.speculation.num_accepted_tokens > 0
    assert service.serving.engine.alive
