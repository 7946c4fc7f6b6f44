"""A fault in one request's processing ends that request alone; a dead engine ends the service."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
from grpc_health.v1 import health_pb2, health_pb2_grpc
from outrider.v1 import generation_pb2 as pb
from outrider_contract.errors import Reason
from outrider_runtime.errors import StartupError
from outrider_runtime.model.batch import SequenceRows
from outrider_target.decoding.stopping import StopCheck
from outrider_target.decoding.token_strategy import TokenStrategy
from outrider_target.drafting.lookup import LookupSession
from outrider_target.engine import round as rounds
from outrider_target.engine.scheduler import Scheduler
from outrider_target.service import TargetService
from outrider_target.serving.text import TextWriter
from service.asking import LOOKUP, Answer, Config, ask, collect
from service.harness import PATIENCE, Caller, RunningService, settings_for
from service.refusals import Refusal, refusal
from service.tiny_folder import ids_of
from structlog.contextvars import merge_contextvars
from structlog.testing import capture_logs

SECRET = "/etc/secret: no such file"
POISON = 250
"""A prompt token that makes things go wrong."""

POISONED = ask(
    [POISON, *ids_of("abcab")], request_id="poisoned", max_new_tokens=30, speculation=LOOKUP
)
OTHERS: list[tuple[str, Config]] = [
    ("abcabcab", {}),
    ("xyz", {"do_sample": True, "top_k": 0}),
    ("a long prompt " * 6, {"do_sample": True, "num_return_sequences": 2}),
]
COMPANY = [
    ask(prompt, seed=7, max_new_tokens=30, speculation=LOOKUP, **config)
    for prompt, config in OTHERS
]

Breakage = Callable[[pytest.MonkeyPatch, RunningService], None]


def explode(*_: object) -> Any:
    raise RuntimeError(SECRET)


def method_of(owner: type, name: str, is_poisoned: Callable[[Any, Any], bool]) -> Breakage:
    """Makes a method raise for the poisoned request."""

    def install(monkeypatch: pytest.MonkeyPatch, service: RunningService) -> None:
        original = getattr(owner, name)

        def broken(self: Any, *args: Any, **options: Any) -> Any:
            if is_poisoned(self, args):
                explode()
            return original(self, *args, **options)

        monkeypatch.setattr(owner, name, broken)

    return install


def in_the_forward(monkeypatch: pytest.MonkeyPatch, service: RunningService) -> None:
    def fail(batch: Sequence[SequenceRows]) -> None:
        if any(POISON in item.token_ids for item in batch):
            explode()

    monkeypatch.setattr(service.gate, "before", fail)


def in_the_scores(monkeypatch: pytest.MonkeyPatch, service: RunningService) -> None:
    def spoil(batch: Sequence[SequenceRows], logits: torch.Tensor) -> torch.Tensor:
        row = 0
        for item in batch:
            if POISON in item.token_ids:
                logits[row : row + item.num_logits] = torch.nan
            row += item.num_logits
        return logits

    monkeypatch.setattr(service.gate, "after", spoil)


def _last_length_is_30(self: Any, _: object) -> bool:
    limit: int = self._max_length
    return limit == len(POISONED.token_ids.ids) + 30


BREAKAGES: dict[str, Breakage] = {
    "forward": in_the_forward,
    "scores": in_the_scores,
    "rows": method_of(TokenStrategy, "rows", lambda self, args: POISON in self.token_ids[:-10]),
    "commit": method_of(TokenStrategy, "commit", lambda self, args: self._num_prompt_tokens == 6),
    "stop check": method_of(StopCheck, "push", _last_length_is_30),
    "proposal": method_of(
        LookupSession, "proposal", lambda self, args: self._lookup._token_ids[0] == POISON
    ),
    "text": method_of(TextWriter, "write", lambda self, args: POISON in self._decoder._ids),
}


@pytest.fixture(params=BREAKAGES)
def breakage(request: pytest.FixtureRequest) -> Breakage:
    return BREAKAGES[request.param]


@pytest.fixture
def alone(caller: Caller) -> list[Answer]:
    """What the company says when nothing is wrong."""
    return [collect(caller.open(request)) for request in COMPANY]


def test_a_fault_in_one_request_ends_that_request_alone(
    service: RunningService,
    caller: Caller,
    alone: list[Answer],
    breakage: Breakage,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    breakage(monkeypatch, service)
    with capture_logs(processors=[merge_contextvars]) as lines:
        with service.gate.held():
            calls = [caller.open(request) for request in COMPANY]
            for call in calls:
                next(call)
            victim = caller.open(POISONED)
            next(victim)
        got = refusal(lambda: list(victim))
        together = [collect_after_start(call) for call in calls]
    check_opaque(got)
    for tokens, answer in zip(together, alone, strict=True):
        assert tokens == [part.token_ids for part in answer.parts]
        assert answer.complete.speculation.num_draft_tokens > 0
    told = [line for line in lines if line.get("request_id") == "poisoned"]
    assert any(line["log_level"] == "error" for line in told), "the log has it under the id"
    caller.wait_until_idle()


def collect_after_start(call: Iterator[pb.GenerateResponse]) -> list[list[int]]:
    """Token ids by sequence, of a stream whose first message was read."""
    parts: dict[int, list[int]] = {}
    for message in call:
        if message.WhichOneof("response") == "chunk":
            parts.setdefault(message.chunk.sequence_index, []).extend(message.chunk.token_ids)
    return [parts[index] for index in sorted(parts)]


def check_opaque(got: Refusal) -> None:
    assert (got.code, got.reason) == (grpc.StatusCode.INTERNAL, Reason.INTERNAL)
    assert got.request_id == "poisoned"
    assert "poisoned" in got.message, "the id is what one looks up"
    for word in ("secret", "RuntimeError", "Traceback", "/etc", "NaN"):
        assert word not in got.message


def test_a_fault_before_the_engine_is_as_opaque(
    caller: Caller, service: RunningService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(service.serving.text), "encode", explode)
    got = refusal(lambda: next(caller.open(ask("abc", request_id="poisoned"))))
    check_opaque(got)


def test_the_engine_serves_on_after_any_number_of_faults(
    caller: Caller, service: RunningService, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        in_the_forward(broken, service)
        for _ in range(20):
            assert refusal(lambda: list(caller.open(POISONED))).code is grpc.StatusCode.INTERNAL
    assert len(collect(caller.open(POISONED)).token_ids) == 30


# --- the engine itself dies


async def health(channel: grpc.aio.Channel) -> int:
    stub = health_pb2_grpc.HealthStub(channel)
    answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=PATIENCE)
    return int(answer.status)


async def test_a_dead_engine_ends_running_calls_and_the_process(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = TargetService(settings_for(folder))
    await service.start()
    address = f"127.0.0.1:{service.port}"
    running = asyncio.create_task(service.run(lambda line: None))
    async with grpc.aio.insecure_channel(address) as channel:
        assert await health(channel) == health_pb2.HealthCheckResponse.SERVING
        await asyncio.to_thread(one_call_when_the_engine_dies, address, monkeypatch)
    with pytest.raises(StartupError) as caught:
        await asyncio.wait_for(running, PATIENCE)
    text = str(caught.value)
    assert "engine died" in text
    assert "\n" not in text


def one_call_when_the_engine_dies(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with Caller(address) as caller:
        call = caller.open(ask(request_id="poisoned", max_new_tokens=900))
        next(call)
        next(call)
        monkeypatch.setattr(Scheduler, "plan", explode)
        got = refusal(lambda: list(call))
    check_opaque(got)


def test_a_service_with_a_dead_engine_is_not_healthy_and_takes_nothing_new(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with RunningService(settings_for(folder)) as service, Caller(service.address) as caller:
        stub = health_pb2_grpc.HealthStub(caller.channel)
        watching = stub.Watch(health_pb2.HealthCheckRequest(), timeout=PATIENCE)
        assert next(watching).status == health_pb2.HealthCheckResponse.SERVING
        with service.gate.held(after=2):
            calls = [caller.open(ask(max_new_tokens=50)) for _ in range(4)]
            for call in calls:
                next(call)
            service.gate.wait_until_held()
            monkeypatch.setattr(rounds.Rounds, "_verify", explode)
        for call in calls:
            assert refusal(functools.partial(list, call)).code is grpc.StatusCode.INTERNAL
        assert next(watching).status == health_pb2.HealthCheckResponse.NOT_SERVING
        watching.cancel()
        got = refusal(lambda: next(caller.open(ask(max_new_tokens=2))))
        assert got.code is grpc.StatusCode.UNAVAILABLE
        assert not service.serving.engine.alive
