"""A real draft service in-process, and a scripted target to talk to it over loopback gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from outrider.v1 import draft_pb2, draft_pb2_grpc
from outrider_contract.generation_config import from_json_dict
from outrider_draft.drafter import Drafter
from outrider_draft.proposer import Description, Outcome, OutOfRoom, Proposer, Share
from outrider_draft.service import DraftService
from outrider_draft.session import Proposed, Session
from outrider_draft.settings import DraftSettings, SessionSettings, StepSettings
from outrider_draft.updates import SessionKey
from outrider_runtime.draft_protocol import PROTOCOL_VERSION
from outrider_runtime.draft_tree import DraftTree, Limits, Proposal
from outrider_runtime.metrics import DraftMetrics
from outrider_runtime.server import ServerSettings
from prometheus_client import CollectorRegistry

TIMEOUT = 20.0
"""Seconds after which a test that waits has failed."""

MAX_NODES = 1024
FINGERPRINT = "a tokenizer"


class ScriptedProposer:
    """Continues every sequence by a function of its tokens; keeps books like a model would.

    Args:
        follow: Tokens to what follows: a token, or a token and its log-probability.
        capacity: Tokens it can hold at once, as if they were cached.
        description: What it says of itself.
    """

    def __init__(
        self,
        follow: Callable[[Sequence[int]], int | tuple[int, float]],
        *,
        capacity: int | None = None,
        description: Description | None = None,
    ) -> None:
        self.follow = follow
        self.capacity = capacity
        self.description = description or Description(kind="prompt-lookup")
        self.rows_are_cheap = False
        self.held: dict[SessionKey, int] = {}
        self.steps: list[list[Share]] = []
        self.forgotten: list[SessionKey] = []

    def pending(self, session: Session) -> int:
        known = min(self.held.get(session.key, 0), len(session.tokens) - 1)
        return len(session.tokens) - known

    def extend(self, shares: Sequence[Share]) -> list[Outcome]:
        held = dict(self.held)
        for share in shares:
            start = len(share.session.tokens) - self.pending(share.session)
            held[share.session.key] = start + share.num_rows
        if self.capacity is not None and sum(held.values()) > self.capacity:
            raise OutOfRoom("scripted")
        self.held = held
        self.steps.append(list(shares))
        return [self._outcome(share.session) for share in shares]

    def rewind(self, key: SessionKey, length: int) -> None:
        if key in self.held:
            self.held[key] = min(self.held[key], length)

    def holds(self, key: SessionKey) -> bool:
        return key in self.held

    def forget(self, key: SessionKey) -> None:
        if self.held.pop(key, None) is not None:
            self.forgotten.append(key)

    def _outcome(self, session: Session) -> Outcome:
        if self.held[session.key] < len(session.tokens):
            return Outcome()
        followed = self.follow(session.tokens)
        token_id, log_prob = followed if isinstance(followed, tuple) else (followed, 0.0)
        return Outcome([Proposed(token_id, log_prob)])


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
    service = DraftService(settings, drafter, metrics)
    port = await service.start()
    try:
        yield RunningDrafter(service, port, metrics)
    finally:
        async with asyncio.timeout(TIMEOUT):
            await service.kill()


@dataclass(slots=True)
class TargetSession:
    """The target's side of a session: its copy of the tree, and what it was told."""

    tree: DraftTree
    grows: list[draft_pb2.Grow] = field(default_factory=list)
    resyncs: list[draft_pb2.Resync] = field(default_factory=list)

    @property
    def chain(self) -> list[int]:
        """The proposed tokens."""
        return [node.token_id for node in self.tree.best_path()]

    @property
    def complete(self) -> bool:
        """Whether nothing more comes before the next commit."""
        last = self.grows[-1] if self.grows else None
        return last is not None and last.complete and last.base_length == self.tree.committed_length


class ScriptedTarget:
    """A target that does as it is told, and insists that the drafter keeps to the protocol."""

    def __init__(self, channel: grpc.aio.Channel, *, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self.sessions: dict[int, TargetSession] = {}
        self.welcome: draft_pb2.Welcome | None = None
        self.frames: list[draft_pb2.SpeculateResponse] = []
        self.stub: draft_pb2_grpc.DraftServiceAsyncStub = draft_pb2_grpc.DraftServiceStub(channel)
        self.call = self.stub.Speculate()
        self._news = asyncio.Condition()
        self._reader: asyncio.Task[None] | None = None
        self.error: BaseException | None = None
        self.ended = asyncio.Event()

    async def hello(
        self, *, version: int = PROTOCOL_VERSION, fingerprint: str = FINGERPRINT
    ) -> draft_pb2.Welcome:
        """Open the link; raises what the drafter answers instead of a welcome."""
        await self.send(
            draft_pb2.SpeculateRequest(
                hello=draft_pb2.Hello(
                    protocol_version=version,
                    tokenizer_fingerprint=fingerprint,
                    model_id="scripted",
                    vocab_size=self.vocab_size,
                )
            )
        )
        async with asyncio.timeout(TIMEOUT):
            first: Any = await self.call.read()
            if first is grpc.aio.EOF:
                raise await self.failure()
        assert first.HasField("welcome")
        self.welcome = first.welcome
        self._reader = asyncio.create_task(self._read())
        return self.welcome

    async def failure(self) -> grpc.aio.AioRpcError:
        """What the call ended with."""
        async with asyncio.timeout(TIMEOUT):
            return grpc.aio.AioRpcError(
                await self.call.code(),
                await self.call.initial_metadata(),
                await self.call.trailing_metadata(),
                await self.call.details(),
            )

    async def send(self, frame: draft_pb2.SpeculateRequest) -> None:
        async with asyncio.timeout(TIMEOUT):
            await self.call.write(frame)

    def open_message(
        self,
        session: int,
        token_ids: Sequence[int],
        *,
        window: int = 4,
        run_ahead: int = 0,
        config: Mapping[str, object] | None = None,
        seed: int = 0,
        sample_index: int = 0,
        draft_temperature: float = 0.0,
        confidence_threshold: float = 0.0,
        max_nodes: int = MAX_NODES,
        num_prompt_tokens: int | None = None,
    ) -> draft_pb2.Open:
        """An Open, and the target's own copy of the session."""
        self.sessions[session] = TargetSession(DraftTree(token_ids))
        return draft_pb2.Open(
            session=session,
            token_ids=token_ids,
            num_prompt_tokens=num_prompt_tokens or len(token_ids),
            generation_config=from_json_dict(config or {"max_new_tokens": 1000}),
            seed=seed,
            sample_index=sample_index,
            draft_temperature=draft_temperature,
            limits=wire_limits(Limits(window, window + run_ahead, max_nodes, confidence_threshold)),
        )

    async def open(self, session: int, token_ids: Sequence[int], **options: Any) -> TargetSession:
        """Open a session; options as those of `open_message`."""
        opened = self.open_message(session, token_ids, **options)
        await self.send(draft_pb2.SpeculateRequest(opens=[opened]))
        return self.sessions[session]

    async def commit(
        self,
        session: int,
        token_ids: Sequence[int],
        *,
        base_length: int | None = None,
        limits: Limits | None = None,
        known: bool = True,
    ) -> TargetSession:
        """Decide tokens; with `known=False` the target's own copy does not hear of it."""
        own = self.sessions[session]
        base = own.tree.committed_length if base_length is None else base_length
        if known:
            own.tree.commit(base, token_ids)
        message = draft_pb2.Commit(session=session, base_length=base, token_ids=token_ids)
        if limits is not None:
            message.limits.CopyFrom(wire_limits(limits))
        await self.send(draft_pb2.SpeculateRequest(commits=[message]))
        return own

    async def close(self, session: int) -> None:
        del self.sessions[session]
        await self.send(draft_pb2.SpeculateRequest(closes=[draft_pb2.Close(session=session)]))

    async def close_unknown(self, session: int) -> None:
        """Close a session that never was."""
        await self.send(draft_pb2.SpeculateRequest(closes=[draft_pb2.Close(session=session)]))

    async def until_ended(self) -> None:
        """Wait until the drafter has ended the call."""
        async with asyncio.timeout(TIMEOUT):
            await self.ended.wait()

    @property
    def welcome_drafter(self) -> draft_pb2.DrafterDescription:
        """What the drafter said of itself in its welcome."""
        assert self.welcome is not None
        return self.welcome.drafter

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until the frames received so far make a condition true."""
        async with asyncio.timeout(TIMEOUT), self._news:
            await self._news.wait_for(lambda: condition() or self.ended.is_set())
        assert condition(), f"the link ended before that: {self.error!r}"

    async def grown(self, session: int) -> list[int]:
        """Wait until a session's growth is complete; returns its chain."""
        own = self.sessions[session]
        await self.until(lambda: own.complete)
        return own.chain

    async def settled(self, session: int) -> None:
        """Wait until a session's growth is complete, or the drafter wants something of it."""
        own = self.sessions[session]
        await self.until(lambda: own.complete or bool(own.resyncs))

    async def resynced(self, session: int, *, count: int = 1) -> draft_pb2.Resync:
        """Wait for a session's resyncs; returns the last."""
        own = self.sessions[session]
        await self.until(lambda: len(own.resyncs) >= count)
        return own.resyncs[-1]

    async def disconnect(self) -> None:
        """End the call as a target that dies would."""
        self.call.cancel()
        if self._reader is not None:
            await self._reader

    async def _read(self) -> None:
        try:
            while True:
                frame: Any = await self.call.read()
                if frame is grpc.aio.EOF:
                    break
                async with self._news:
                    self._take(frame)
                    self._news.notify_all()
        except (grpc.aio.AioRpcError, asyncio.CancelledError, AssertionError) as error:
            self.error = error
        async with self._news:
            self.ended.set()
            self._news.notify_all()

    def _take(self, frame: draft_pb2.SpeculateResponse) -> None:
        assert not frame.HasField("welcome")
        self.frames.append(frame)
        for grow in frame.grows:
            if (own := self.sessions.get(grow.session)) is None:
                continue  # closed
            arrays = (grow.node_ids, grow.parent_ids, grow.token_ids, grow.log_probs)
            growth = own.tree.grow(
                grow.base_length,
                [Proposal(*node) for node in zip(*arrays, strict=True)],
                vocab_size=self.vocab_size,
                max_nodes=MAX_NODES,
            )
            assert growth.offences == 0, grow
            own.grows.append(grow)
        for resync in frame.resyncs:
            if (own := self.sessions.get(resync.session)) is not None:
                own.resyncs.append(resync)


def wire_limits(limits: Limits) -> draft_pb2.Limits:
    """Limits as a message."""
    return draft_pb2.Limits(
        window=limits.window,
        depth=limits.depth,
        max_nodes=limits.max_nodes,
        confidence_threshold=limits.confidence_threshold,
    )


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
