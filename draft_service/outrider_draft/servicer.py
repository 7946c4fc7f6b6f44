"""`DraftService` on the wire: opens links, carries updates to the drafting thread and answers back.

Runs on the event loop and never waits for a forward.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import structlog
from outrider.v1 import draft_pb2, draft_pb2_grpc
from outrider_runtime.draft_protocol import (
    MAX_PROTOCOL_VERSION,
    MIN_PROTOCOL_VERSION,
    PROTOCOL_VERSION,
)
from outrider_runtime.errors import Draining, InvalidRequest, OutriderError
from outrider_runtime.request_context import current_caller
from outrider_runtime.version import release

from outrider_draft import frames, handshake
from outrider_draft.link import Link, LinkClosed
from outrider_draft.metrics import DraftMetrics
from outrider_draft.proposer import Description
from outrider_draft.settings import SessionSettings
from outrider_draft.updates import Message, StreamEnded
from outrider_draft.worker import DraftWorker

log = structlog.get_logger(__name__)

SERVICE_NAME: str = draft_pb2.DESCRIPTOR.services_by_name["DraftService"].full_name


class DraftServicer(draft_pb2_grpc.DraftServiceServicer):
    """Serves all targets with one drafting thread."""

    def __init__(
        self,
        description: Description,
        *,
        limits: SessionSettings,
        max_length: int,
        metrics: DraftMetrics,
    ) -> None:
        """Serve nothing yet; `attach` brings the thread.

        Args:
            description: What the drafter is.
            limits: How many sessions are held.
            max_length: Longest sequence, in tokens.
            metrics: Counters.
        """
        self._description = description
        self._max_length = max_length
        self._limits = limits
        self._metrics = metrics
        self._loop = asyncio.get_running_loop()
        self._worker: DraftWorker | None = None
        self._links: dict[int, Link] = {}
        self._streams = itertools.count(1)
        self._draining = False

    def attach(self, worker: DraftWorker) -> None:
        """Tell which thread drafts."""
        self._worker = worker

    def deliver(self, messages: list[Message]) -> None:
        """Pass messages to their streams; called in the drafting thread."""
        with suppress(RuntimeError):  # the loop is closed: nobody is left to read
            self._loop.call_soon_threadsafe(self._dispatch, messages)

    async def Speculate(
        self,
        request_iterator: Any,
        context: Any,
    ) -> AsyncIterator[draft_pb2.SpeculateResponse]:
        """The draft link."""
        if self._draining:
            raise Draining
        try:
            bounds, drafter = await self._hello(request_iterator)
        except OutriderError as error:
            self._metrics.links_refused.labels(error.reason).inc()
            raise
        link = self._links[bounds.stream] = Link(bounds.stream)
        self._metrics.num_links.set(len(self._links))
        reader = asyncio.create_task(self._read(request_iterator, link, bounds))
        try:
            yield draft_pb2.SpeculateResponse(
                welcome=draft_pb2.Welcome(protocol_version=PROTOCOL_VERSION, drafter=drafter)
            )
            while True:
                try:
                    messages = await link.next_messages()
                except LinkClosed:
                    break
                yield frames.response(messages)
        finally:
            # In `finally`, because a handler that is being closed while it yields sees no
            # CancelledError.
            reader.cancel()
            del self._links[link.stream]
            self._metrics.num_links.set(len(self._links))
            self._running.submit([StreamEnded(link.stream)])
            log.info("draft_link_closed", stream=link.stream)

    async def Describe(
        self,
        request: draft_pb2.DescribeRequest,
        context: Any,
    ) -> draft_pb2.DescribeResponse:
        """What the drafter is."""
        return draft_pb2.DescribeResponse(
            min_protocol_version=MIN_PROTOCOL_VERSION,
            max_protocol_version=MAX_PROTOCOL_VERSION,
            drafter=self._describe(self._description),
            num_sessions=self._running.num_sessions,
            max_sessions=self._limits.max_sessions,
            num_links=len(self._links),
            num_waiting_frames=self._running.num_waiting,
            draining=self._draining,
            version=release(),
        )

    async def drain(self, *, answer: bool = True) -> None:
        """Take nothing new, then end every link with UNAVAILABLE.

        Args:
            answer: Wait until what was taken in is answered.
        """
        self._draining = True
        if answer:
            await self._at_rest()
        for link in self._links.values():
            link.end(Draining("the drafter is shutting down"))

    @property
    def _running(self) -> DraftWorker:
        assert self._worker is not None, "attach() comes before serving"
        return self._worker

    async def _at_rest(self) -> None:
        """Wait until nothing is left to draft."""
        at_rest = asyncio.Event()

        def tell() -> None:  # in the drafting thread, after the last delivery
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(at_rest.set)

        self._running.when_at_rest(tell)
        await at_rest.wait()

    async def _hello(
        self, request_iterator: AsyncIterator[draft_pb2.SpeculateRequest]
    ) -> tuple[frames.Bounds, draft_pb2.DrafterDescription]:
        first = await anext(aiter(request_iterator), None)
        if first is None or not first.HasField("hello"):
            raise InvalidRequest("hello", "must be the first frame of a link")
        if first.opens or first.commits or first.closes:
            raise InvalidRequest("hello", "stands alone; updates come in later frames")
        hello = first.hello
        agreed = handshake.agree(
            self._description,
            protocol_version=hello.protocol_version,
            tokenizer_fingerprint=hello.tokenizer_fingerprint,
            vocab_size=hello.vocab_size,
        )
        stream = next(self._streams)
        log.info("draft_link_opened", stream=stream, target=hello.model_id[:128], kind=agreed.kind)
        bounds = frames.Bounds(
            stream=stream,
            target_vocab_size=hello.vocab_size,
            own_vocab_size=agreed.vocab_size,
            max_length=self._max_length,
            scope=_scope(hello),
            tokenizer=hello.tokenizer_fingerprint if agreed.kind == handshake.TRANSLATED else "",
        )
        return bounds, self._describe(agreed)

    def _describe(self, description: Description) -> draft_pb2.DrafterDescription:
        return frames.describe(
            description,
            max_sessions=self._limits.max_sessions_per_target,
            max_length=self._max_length,
        )

    async def _read(
        self,
        request_iterator: AsyncIterator[draft_pb2.SpeculateRequest],
        link: Link,
        bounds: frames.Bounds,
    ) -> None:
        """Hand a target's frames to the drafting thread until it ends the stream, or is gone."""

        def taken() -> None:  # in the drafting thread
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(link.frame_taken)

        try:
            async for frame in request_iterator:
                if self._draining:
                    return  # `drain` ends the link
                await link.frame_granted()
                self._running.submit(frames.updates(frame, bounds), taken)
        except OutriderError as error:
            link.end(error)
            return
        link.end()

    def _dispatch(self, messages: list[Message]) -> None:
        by_stream: dict[int, list[Message]] = defaultdict(list)
        for message in messages:
            by_stream[message.key.stream].append(message)
        for stream, own in by_stream.items():
            if (link := self._links.get(stream)) is not None:
                link.post(own)


def _scope(hello: draft_pb2.Hello) -> bytes:
    """What makes texts of two targets alike: the tokens mean the same, and one caller has both."""
    parts = current_caller(), hello.tokenizer_fingerprint, str(hello.vocab_size)
    return hashlib.sha256("\0".join(parts).encode()).digest()
