"""A target service in this process: a thread and an event loop of its own, a real port.

Tests reach it over gRPC as any caller would. The one thing they touch inside is the gate before the
model's forward, at which they hold the engine: that makes "in the middle of a generation" a place
and not a matter of luck. Nothing here sleeps.
"""

from __future__ import annotations

import asyncio
import dataclasses
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import grpc
import torch
from outrider.v1 import generation_pb2 as pb
from outrider.v1.generation_pb2_grpc import GenerationServiceStub
from outrider_runtime.model.batch import SequenceRows
from outrider_runtime.model.runner import nothing
from outrider_runtime.server import ServerSettings
from outrider_target.engine.admission import LiveRequests
from outrider_target.service import TargetService
from outrider_target.serving.serving import Serving
from outrider_target.settings import (
    BatchSettings,
    ModelSettings,
    SpeculationDefaults,
    TargetSettings,
)

_T = TypeVar("_T")

PATIENCE = 60.0
"""Seconds after which a wait in a test has failed."""


def settings_for(folder: Path, **changes: Any) -> TargetSettings:
    """Settings of a service on a tiny model.

    float64: the same row in batches of different shapes then rounds to the same logits.
    """
    settings = TargetSettings(
        model=ModelSettings(model=str(folder), dtype="float64", block_size=8, kv_cache_tokens=8192),
        server=ServerSettings(grace_seconds=PATIENCE),
        batch=BatchSettings(max_num_seqs=8, max_waiting_requests=8),
        # What is worth verifying would depend on how fast this machine is at the moment.
        speculation=SpeculationDefaults(num_assistant_tokens_schedule="heuristic"),
    )
    return dataclasses.replace(settings, **changes)


class Gate:
    """Stands before every forward: counts them, holds them up, lets tests raise there."""

    def __init__(self, forward: Callable[..., torch.Tensor]) -> None:
        self._forward = forward
        self._changed = threading.Condition()
        self._permits: int | None = None
        self._waiting = False
        self.num_forwards = 0
        self.before: Callable[[Sequence[SequenceRows]], None] = lambda batch: None
        """Called in the engine thread before each forward."""
        self.after: Callable[[Sequence[SequenceRows], torch.Tensor], torch.Tensor] = (
            lambda batch, logits: logits
        )
        """Called in the engine thread with what a forward gave; what it returns counts."""

    def __call__(
        self,
        batch: Sequence[SequenceRows],
        *,
        before: Callable[[], None] = nothing,
        **options: int,
    ) -> torch.Tensor:
        before()  # what callers are told of the last round, they hear while the engine stands here
        with self._changed:
            self._waiting = self._permits == 0
            self._changed.notify_all()
            assert self._changed.wait_for(lambda: self._permits != 0, PATIENCE), "held for ever"
            self._waiting = False
            if self._permits is not None:
                self._permits -= 1
            self.num_forwards += 1
        self.before(batch)
        return self.after(batch, self._forward(batch, **options))

    @contextmanager
    def held(self, *, after: int = 0) -> Iterator[None]:
        """Hold the engine before a forward, once `after` more have gone through."""
        self.let(after)
        try:
            yield
        finally:
            self.let(None)

    def let(self, permits: int | None) -> None:
        """Let so many more forwards through, or from now on all."""
        with self._changed:
            self._permits = permits
            self._changed.notify_all()

    def wait_until_held(self) -> None:
        """Wait until the engine stands here."""
        with self._changed:
            assert self._changed.wait_for(lambda: self._waiting, PATIENCE), "nothing to hold"


class RunningService:
    """A context manager: a target service that serves between entering and leaving."""

    def __init__(self, settings: TargetSettings) -> None:
        self._service = TargetService(settings)
        self._thread = threading.Thread(target=self._run, name="target-service")
        self._ready = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._leave: asyncio.Event | None = None
        self._fault: BaseException | None = None
        self._draining: asyncio.Task[None] | None = None
        self.address = ""
        self.gate: Gate

    def __enter__(self) -> RunningService:
        self._thread.start()
        assert self._ready.wait(PATIENCE), "the service does not start"
        if self._fault is not None:
            self._thread.join()
            raise self._fault
        self.address = f"127.0.0.1:{self._service.port}"
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._loop is not None
        assert self._leave is not None
        self._loop.call_soon_threadsafe(self._leave.set)
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive(), "the service does not stop"

    @property
    def serving(self) -> Serving:
        """The inside of the service."""
        assert self._service.serving is not None
        return self._service.serving

    def begin_to_drain(self) -> None:
        """Do as on SIGTERM: new requests are refused, what runs goes on."""

        async def begin() -> None:
            assert self._service._server is not None
            self._service._server.set_serving(False)
            self._draining = asyncio.create_task(self.requests.drain())

        assert self._loop is not None
        asyncio.run_coroutine_threadsafe(begin(), self._loop).result(PATIENCE)

    @property
    def metrics_port(self) -> int:
        """Port of the metrics page."""
        assert self._service.metrics_port is not None
        return self._service.metrics_port

    @property
    def requests(self) -> LiveRequests:
        """The service's live requests; only to be looked at."""
        return self.serving.requests

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as fault:  # raised again in the thread that waits
            self._fault = fault
            self._ready.set()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._leave = asyncio.Event()
        await self._service.start()
        self.gate = install_gate(self._service)
        self._ready.set()
        await self._leave.wait()
        await self._service.stop()


def install_gate(service: TargetService) -> Gate:
    """Put a gate before a started service's forwards."""
    assert service.serving is not None
    runner: Any = service.serving.engine._rounds._verifier._runner
    runner.forward = gate = Gate(runner.forward)
    return gate


class Caller:
    """Raw stubs on a channel of their own."""

    def __init__(self, address: str, **options: int) -> None:
        self.channel = grpc.insecure_channel(
            address, options=[(name.replace("__", "."), v) for name, v in options.items()]
        )
        self.stub = GenerationServiceStub(self.channel)

    def __enter__(self) -> Caller:
        return self

    def __exit__(self, *_: object) -> None:
        self.channel.close()

    def open(self, request: pb.GenerateRequest, timeout: float = PATIENCE) -> Any:
        """A running call."""
        return self.stub.Generate(request, timeout=timeout)

    def loads(self) -> pb.GetLoadsResponse:
        """How busy the server is."""
        return self.stub.GetLoads(pb.GetLoadsRequest(), timeout=PATIENCE)

    def wait_until_idle(self) -> pb.GetLoadsResponse:
        """Ask until nothing runs, nothing waits and every block is free."""
        return until(
            self.loads,
            lambda loads: (
                loads.num_running_sequences == 0
                and loads.num_waiting_requests == 0
                and loads.kv_cache_usage == 0
            ),
        )


def until(ask: Callable[[], _T], holds: Callable[[_T], bool]) -> _T:
    """Ask until the answer is the wanted one; each question is a round trip, so nothing spins."""
    deadline = time.monotonic() + PATIENCE
    while not holds(answer := ask()):
        assert time.monotonic() < deadline, f"still {answer}"
    return answer
