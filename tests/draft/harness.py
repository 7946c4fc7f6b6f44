"""A real draft service in-process, and a scripted target to talk to it over loopback gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import grpc
import pytest
from outrider.v1 import draft_pb2, draft_pb2_grpc
from outrider_conformance.streams import GrpcStream, LinkCall, LinkEnded
from outrider_conformance.target import TIMEOUT, Target
from outrider_draft.drafter import Drafter
from outrider_draft.line import Line, Proposed
from outrider_draft.metrics import DraftMetrics
from outrider_draft.proposer import Description, Outcome, OutOfRoom, Proposer, Share
from outrider_draft.service import DraftService
from outrider_draft.settings import DraftSettings, SessionSettings, StepSettings
from outrider_draft.side_line import SideLine
from outrider_draft.updates import SessionKey
from outrider_runtime.draft_protocol import PROTOCOL_VERSION
from outrider_runtime.server import ServerSettings
from outrider_runtime.tracing import Tracer
from prometheus_client import CollectorRegistry

FINGERPRINT = "a tokenizer"


class ScriptedProposer:
    """Continues every sequence by a function of its tokens; keeps books like a model would.

    Args:
        follow: Tokens to what follows: a token, or a token and its log-probability.
        guess: Tokens to further guesses at what follows.
        capacity: Tokens it can hold at once, as if they were cached.
        description: What it says of itself.
    """

    def __init__(
        self,
        follow: Callable[[Sequence[int]], int | tuple[int, float]],
        *,
        guess: Callable[[Sequence[int]], Sequence[int]] = lambda tokens: (),
        capacity: int | None = None,
        description: Description | None = None,
    ) -> None:
        self.follow = follow
        self.guess = guess
        self.capacity = capacity
        self.description = description or Description(kind="prompt-lookup")
        self.rows_are_cheap = False
        self.held: dict[SessionKey, int] = {}
        self.steps: list[list[Share]] = []
        self.forgotten: list[SessionKey] = []

    def pending(self, line: Line) -> int:
        held = self.held.get(line.key)
        if held is None:
            held = 0
            if isinstance(line, SideLine):
                held = min(self.held.get(line.source, 0), line.num_shared)
        return len(line.tokens) - min(held, len(line.tokens) - 1)

    def extend(self, shares: Sequence[Share]) -> list[Outcome]:
        held = dict(self.held)
        for share in shares:
            start = len(share.line.tokens) - self.pending(share.line)
            held[share.line.key] = start + share.num_rows
        if self.capacity is not None and sum(held.values()) > self.capacity:
            raise OutOfRoom("scripted")
        self.held = held
        self.steps.append(list(shares))
        return [self._outcome(share) for share in shares]

    def rewind(self, key: SessionKey, length: int) -> None:
        if key in self.held:
            self.held[key] = min(self.held[key], length)

    def adopt(self, key: SessionKey, line: SessionKey) -> None:
        if line in self.held:
            self.held[key] = self.held.pop(line)

    def holds(self, key: SessionKey) -> bool:
        return key in self.held

    def forget(self, key: SessionKey) -> None:
        if self.held.pop(key, None) is not None:
            self.forgotten.append(key)

    def _outcome(self, share: Share) -> Outcome:
        line = share.line
        if self.held[line.key] < len(line.tokens):
            return Outcome()
        followed = self.follow(line.tokens)
        token_id, log_prob = followed if isinstance(followed, tuple) else (followed, 0.0)
        others = [token for token in self.guess(line.tokens) if token != token_id]
        siblings = [
            Proposed(other, log_prob - 0.5 * place)
            for place, other in enumerate(others[: share.num_siblings], start=1)
        ]
        return Outcome([Proposed(token_id, log_prob)], siblings)


def counting(tokens: Sequence[int]) -> int:
    """The next number."""
    return tokens[-1] + 1


@dataclass(slots=True)
class RunningDrafter:
    """A draft service that listens."""

    service: DraftService
    port: int
    metrics: DraftMetrics

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def until(self, condition: Callable[[], bool]) -> None:
        """Let the event loop run until something came true that nobody announces."""
        async with asyncio.timeout(TIMEOUT):
            while not condition():
                await asyncio.sleep(0)


@asynccontextmanager
async def draft_service(
    drafter: Drafter | Proposer,
    *,
    sessions: SessionSettings | None = None,
    step: StepSettings | None = None,
    server: ServerSettings | None = None,
    metrics: DraftMetrics | None = None,
    tracer: Tracer | None = None,
) -> AsyncIterator[RunningDrafter]:
    """Run a draft service on this event loop until the block ends."""
    if not isinstance(drafter, Drafter):
        drafter = Drafter(drafter, "scripted")
    metrics = metrics or DraftMetrics(CollectorRegistry())
    settings = DraftSettings(
        server=server or ServerSettings(grace_seconds=2),
        sessions=sessions or SessionSettings(),
        step=step or StepSettings(),
    )
    service = DraftService(settings, drafter, metrics, tracer)
    port = await service.start()
    try:
        yield RunningDrafter(service, port, metrics)
    finally:
        async with asyncio.timeout(TIMEOUT):
            await service.kill()


class ScriptedTarget(Target):
    """The target's side of a link over gRPC."""

    stream: GrpcStream

    def __init__(self, channel: grpc.aio.Channel, *, vocab_size: int) -> None:
        super().__init__(GrpcStream(channel), vocab_size=vocab_size)

        self.stub: draft_pb2_grpc.DraftServiceAsyncStub = draft_pb2_grpc.DraftServiceStub(channel)

    @property
    def call(self) -> LinkCall:
        return self.stream.call

    @property
    def welcome_drafter(self) -> draft_pb2.DrafterDescription:
        """What the drafter said of itself in its welcome."""
        assert self.welcome is not None
        return self.welcome.drafter

    async def hello(
        self, *, version: int = PROTOCOL_VERSION, fingerprint: str = FINGERPRINT
    ) -> draft_pb2.Welcome:
        return await super().hello(version=version, fingerprint=fingerprint)

    async def failure(self) -> LinkEnded:
        """What the link ends with."""
        async with asyncio.timeout(TIMEOUT):
            with pytest.raises(LinkEnded) as ended:
                await self.stream.read()
        return ended.value


@asynccontextmanager
async def target(
    drafter: RunningDrafter | str,
    *,
    vocab_size: int = 1000,
    hello: bool = True,
) -> AsyncIterator[ScriptedTarget]:
    """Connect a scripted target; greets by itself unless told not to."""
    address = drafter if isinstance(drafter, str) else drafter.address
    async with AsyncExitStack() as stack:
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(address))
        scripted = ScriptedTarget(channel, vocab_size=vocab_size)
        stack.push_async_callback(scripted.disconnect)
        if hello:
            await scripted.hello()
        yield scripted
