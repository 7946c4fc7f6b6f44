"""The target's side of a draft link: does as it is told and holds the drafter to the protocol."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from outrider.v1 import draft_pb2
from outrider_contract.generation_config import from_json_dict
from outrider_runtime.draft_protocol import PROTOCOL_VERSION
from outrider_runtime.draft_tree import DraftTree, Limits, Proposal

from outrider_conformance.streams import LinkEnded, Stream

TIMEOUT = 20.0
"""Seconds after which an answer that does not come is a violation, unless told otherwise."""

MAX_NODES = 1024
"""Nodes granted to a session's tree unless told otherwise."""

UNBOUNDED: Mapping[str, object] = {"max_new_tokens": 1000}
"""A configuration that leaves the drafter room: greedy, and no end in sight."""


class Violation(AssertionError):
    """The drafter broke a rule of the protocol; the text says which."""


@dataclass(slots=True)
class TargetSession:
    """The target's side of a session: its copy of the tree, and what it was told."""

    tree: DraftTree
    max_nodes: int = MAX_NODES
    grows: list[draft_pb2.Grow] = field(default_factory=list)
    resyncs: list[draft_pb2.Resync] = field(default_factory=list)

    @property
    def chain(self) -> list[int]:
        """The tokens of the most probable path."""
        return [node.token_id for node in self.tree.best_path()]

    @property
    def complete(self) -> bool:
        """Whether nothing more comes before the next commit."""
        last = self.grows[-1] if self.grows else None
        return last is not None and last.complete and last.base_length == self.tree.committed_length


class Target:
    """One link, and the sessions on it."""

    def __init__(
        self,
        stream: Stream,
        *,
        vocab_size: int,
        tolerant: bool = False,
        timeout: float = TIMEOUT,
    ) -> None:
        """Nothing is sent before `hello`.

        Args:
            stream: What carries the frames.
            vocab_size: Token ids that the target can emit.
            tolerant: Whether proposals that break the tree's rules are dropped rather than
                violations: a network that doubles and reorders frames makes such.
            timeout: Seconds after which an answer that does not come is a violation.
        """
        self.vocab_size = vocab_size
        self.stream = stream
        self.sessions: dict[int, TargetSession] = {}
        self.welcome: draft_pb2.Welcome | None = None
        self.frames: list[draft_pb2.SpeculateResponse] = []
        self.error: BaseException | None = None
        """What ended the link: `LinkEnded`, or a `Violation`."""
        self.ended = asyncio.Event()
        self._tolerant = tolerant
        self._timeout = timeout
        self._news = asyncio.Condition()
        self._reader: asyncio.Task[None] | None = None

    async def hello(
        self, *, version: int = PROTOCOL_VERSION, fingerprint: str = ""
    ) -> draft_pb2.Welcome:
        """Open the link; raises `LinkEnded` with what the drafter answers instead of a welcome."""
        await self.send(
            draft_pb2.SpeculateRequest(
                hello=draft_pb2.Hello(
                    protocol_version=version,
                    tokenizer_fingerprint=fingerprint,
                    model_id="conformance",
                    vocab_size=self.vocab_size,
                )
            )
        )
        try:
            async with asyncio.timeout(self._timeout):
                first = await self.stream.read()
        except TimeoutError:
            raise Violation(f"no welcome came within {self._timeout:g} s") from None
        _require(first.HasField("welcome"), "the first frame of a drafter is its welcome")
        self.welcome = first.welcome
        self._reader = asyncio.create_task(self._read())
        return self.welcome

    async def send(self, frame: draft_pb2.SpeculateRequest) -> None:
        """Send a frame as it is."""
        async with asyncio.timeout(self._timeout):
            await self.stream.write(frame)

    def open_message(
        self,
        session: int,
        token_ids: Sequence[int],
        *,
        window: int = 4,
        run_ahead: int = 0,
        config: Mapping[str, object] | None = None,
        confidence_threshold: float = 0.0,
        max_nodes: int = MAX_NODES,
        fan_out: int = 1,
        num_prompt_tokens: int | None = None,
        **fields: Any,
    ) -> draft_pb2.Open:
        """An Open, and the target's own copy of the session.

        Args:
            session: Its number.
            token_ids: Committed tokens.
            window: Draft tokens wanted for the next round.
            run_ahead: Draft tokens granted beyond the window.
            config: Options of GenerationConfig; None: `UNBOUNDED`.
            confidence_threshold: See `Limits`.
            max_nodes: See `Limits`.
            fan_out: See `Limits`.
            num_prompt_tokens: How many of the tokens are the prompt; None: all.
            fields: Further fields of the message.
        """
        self.sessions[session] = TargetSession(DraftTree(token_ids), max_nodes)
        return draft_pb2.Open(
            session=session,
            token_ids=token_ids,
            num_prompt_tokens=num_prompt_tokens or len(token_ids),
            generation_config=from_json_dict(dict(config or UNBOUNDED)),
            limits=wire_limits(
                Limits(window, window + run_ahead, max_nodes, confidence_threshold, fan_out)
            ),
            **fields,
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
        """Forget a session on both sides; one that never was, on the drafter's."""
        self.sessions.pop(session, None)
        await self.send(draft_pb2.SpeculateRequest(closes=[draft_pb2.Close(session=session)]))

    async def until(self, condition: Callable[[], bool], what: str = "an answer") -> None:
        """Wait until the frames received so far make a condition true.

        Raises:
            Violation: It did not come true in time, or the drafter broke a rule before.
            LinkEnded: The link ended before.
        """
        try:
            async with asyncio.timeout(self._timeout), self._news:
                await self._news.wait_for(lambda: condition() or self.ended.is_set())
        except TimeoutError:
            raise Violation(f"{what} did not come within {self._timeout:g} s") from None
        if not condition():
            assert self.error is not None
            raise self.error

    async def grown(self, session: int) -> list[int]:
        """Wait until a session's growth is complete; returns its chain."""
        own = self.sessions[session]
        await self.until(lambda: own.complete, "a Grow that is `complete`")
        return own.chain

    async def settled(self, session: int) -> None:
        """Wait until a session's growth is complete, or the drafter wants something of it."""
        own = self.sessions[session]
        await self.until(lambda: own.complete or bool(own.resyncs), "a complete Grow or a Resync")

    async def resynced(self, session: int, *, count: int = 1) -> draft_pb2.Resync:
        """Wait for a session's resyncs; returns the last."""
        own = self.sessions[session]
        await self.until(lambda: len(own.resyncs) >= count, "a Resync")
        return own.resyncs[-1]

    async def until_ended(self) -> None:
        """Wait until the drafter has ended the link."""
        async with asyncio.timeout(self._timeout):
            await self.ended.wait()

    async def disconnect(self) -> None:
        """End the link as a target that dies would."""
        await self.stream.kill()
        if self._reader is not None:
            await self._reader

    async def _read(self) -> None:
        try:
            while True:
                frame = await self.stream.read()
                async with self._news:
                    self._take(frame)
                    self._news.notify_all()
        except (LinkEnded, Violation) as end:
            self.error = end
        async with self._news:
            self.ended.set()
            self._news.notify_all()

    def _take(self, frame: draft_pb2.SpeculateResponse) -> None:
        _require(not frame.HasField("welcome"), "a welcome comes once, as the first frame")
        self.frames.append(frame)
        for grow in frame.grows:
            if (own := self.sessions.get(grow.session)) is not None:  # else it was closed
                self._grow(own, grow)
        for resync in frame.resyncs:
            if (own := self.sessions.get(resync.session)) is not None:
                own.resyncs.append(resync)

    def _grow(self, own: TargetSession, grow: draft_pb2.Grow) -> None:
        arrays = (grow.node_ids, grow.parent_ids, grow.token_ids, grow.log_probs)
        _require(
            len({len(array) for array in arrays}) == 1,
            f"the arrays of a Grow are equally long: {grow}",
        )
        growth = own.tree.grow(
            grow.base_length,
            [Proposal(*node) for node in zip(*arrays, strict=True)],
            vocab_size=self.vocab_size,
            max_nodes=own.max_nodes,
        )
        _require(
            self._tolerant or growth.offences == 0,
            "nodes have new ascending ids, parents before them, tokens of the vocabulary, and are "
            f"no more than `max_nodes`: {grow}",
        )
        own.grows.append(grow)


def wire_limits(limits: Limits) -> draft_pb2.Limits:
    """Limits as a message."""
    return draft_pb2.Limits(**limits._asdict())


def _require(holds: bool, rule: str) -> None:
    if not holds:
        raise Violation(rule)
