"""The connection to one draft service: connects, shakes hands, carries frames, reconnects.

Lives in the asyncio loop. The engine thread hands it updates through `post` and hears of it through
`report`; neither side ever waits for the other.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum

import grpc
import grpc.aio
import structlog
from outrider.v1 import draft_pb2, draft_pb2_grpc
from outrider_runtime.certificates import ChannelCertificates
from outrider_runtime.draft_protocol import PROTOCOL_VERSION, is_supported
from outrider_runtime.loop_calls import LoopCalls

from outrider_target.drafting.remote import wire
from outrider_target.drafting.remote.link_key import LinkKey
from outrider_target.drafting.remote.updates import (
    DrafterDescription,
    LinkDown,
    LinkEvent,
    LinkUp,
    Update,
)

log = structlog.get_logger()

_FIRST_BACKOFF = 0.1
_MAX_BACKOFF = 5.0
_QUARANTINE = 60.0
"""Seconds before a drafter that misbehaved, or does not fit, is tried again."""
_LOOK_SECONDS = 1.0
"""How often meanwhile it is seen whether there is another key."""

_HANDSHAKE_SECONDS = 5.0
_MAX_QUEUED_FRAMES = 256
"""Frames a drafter may leave unread before it is taken for dead."""

_CHANNEL_OPTIONS = (
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.enable_retries", 0),
    # A link that comes back must not wait behind gRPC's own, longer backoff.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
)

LinkCall = grpc.aio.StreamStreamCall[draft_pb2.SpeculateRequest, draft_pb2.SpeculateResponse]


class LinkStatus(Enum):
    """State of a link, as `GetServerInfo` shows it."""

    CONNECTING = "connecting"
    READY = "ready"
    REFUSED = "refused"


@dataclass(slots=True)
class LinkTraffic:
    """What a link has carried, both ways, without handshakes. Written in the asyncio loop alone."""

    frames_sent: int = 0
    frames_received: int = 0
    bytes_sent: int = 0
    """Of serialised frames: what HTTP/2 and TLS add is not in it."""
    bytes_received: int = 0

    def sent(self, frame: draft_pb2.SpeculateRequest) -> None:
        """Count a frame to the drafter."""
        self.frames_sent += 1
        self.bytes_sent += frame.ByteSize()

    def received(self, frame: draft_pb2.SpeculateResponse) -> None:
        """Count a frame from the drafter."""
        self.frames_received += 1
        self.bytes_received += frame.ByteSize()


class Refused(Exception):
    """The drafter does not fit or misbehaves: do not come back soon."""


class DraftLink:
    """One link, for as long as the target runs."""

    def __init__(
        self,
        address: str,
        hello: draft_pb2.Hello,
        calls: LoopCalls,
        *,
        certificates: ChannelCertificates | None = None,
        certified_name: str | None = None,
        key: LinkKey | None = None,
    ) -> None:
        """Nothing is connected before `start`.

        Args:
            address: HOST:PORT.
            hello: What the target says first.
            calls: Into the loop it lives in.
            certificates: For TLS; None: plaintext.
            certified_name: Name that the drafter's certificate bears, where it is not the host.
            key: By which the drafter knows who it is; None: it asks for none.
        """
        self.address = address
        self.status = LinkStatus.CONNECTING
        self.reason = "not connected yet"
        self.kind = ""
        self.num_losses = 0
        """How often it went down when it was ready."""
        self.traffic = LinkTraffic()
        self._hello = hello
        self._certificates = certificates
        self._certified_name = certified_name
        self._key = key or LinkKey()
        self._loop = asyncio.get_running_loop()
        self._calls = calls
        self._frames: asyncio.Queue[draft_pb2.SpeculateRequest] = asyncio.Queue()
        self._ending: asyncio.Future[Exception] = self._loop.create_future()
        self._said: tuple[tuple[str, str], ...] | None = None  # with the latest connection
        self._index = -1
        self._report: Callable[[LinkEvent], None] = lambda _: None
        self._task: asyncio.Task[None] | None = None

    def start(self, index: int, report: Callable[[LinkEvent], None]) -> None:
        """Begin to connect.

        Args:
            index: The link's index in its events.
            report: Takes its events; called in the loop, must not block.
        """
        self._index = index
        self._report = report
        self._task = self._loop.create_task(self._run(), name=f"draft-link-{self.address}")

    async def stop(self) -> None:
        """Close the connection for good."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    def post(self, updates: Sequence[Update]) -> None:
        """Send a round's updates. Any thread; never blocks."""
        self._calls.call_soon(self._enqueue, updates)

    def expel(self, reason: str) -> None:
        """Close the link for a while because the drafter misbehaves. Any thread."""
        self._calls.call_soon(self._end_with, Refused(reason))

    def _end_with(self, why: Exception) -> None:
        if not self._ending.done():
            self._ending.set_result(why)

    def _enqueue(self, updates: Sequence[Update]) -> None:
        if self.status is not LinkStatus.READY:
            return  # the engine hears of it, and opens its sessions again later
        self._frames.put_nowait(wire.frame(updates))
        if self._frames.qsize() > _MAX_QUEUED_FRAMES:
            self._end_with(TimeoutError("the drafter does not read"))

    async def _run(self) -> None:
        """Connect again and again; every end of a connection is reported once."""
        backoff = _FIRST_BACKOFF
        while True:
            connected_at = time.monotonic()
            try:
                await self._connect_and_serve()
                self._down(LinkStatus.CONNECTING, "the drafter closed the link")
            except Refused as refusal:
                self._down(LinkStatus.REFUSED, str(refusal))
            except (grpc.aio.AioRpcError, TimeoutError, asyncio.InvalidStateError) as fault:
                self._down(LinkStatus.CONNECTING, _describe(fault))
            except Exception as fault:  # a bug here must not cost the link for good
                log.exception("draft_link_failed", address=self.address)
                self._down(LinkStatus.CONNECTING, _describe(fault))
            if time.monotonic() - connected_at > _MAX_BACKOFF:
                backoff = _FIRST_BACKOFF  # it worked for a while: come back quickly
            if self.status is LinkStatus.REFUSED:
                await self._wait_for_another_key(_QUARANTINE)
            else:
                await asyncio.sleep(backoff * random.uniform(0.5, 1.0))
                backoff = min(_MAX_BACKOFF, 2 * backoff)

    async def _wait_for_another_key(self, at_most: float) -> None:
        """Who was let in by none may be by the next one, which need not wait."""
        refused = self._said
        until = self._loop.time() + at_most
        while self._loop.time() < until and self._key.metadata() == refused:
            await asyncio.sleep(min(_LOOK_SECONDS, at_most))

    async def _connect_and_serve(self) -> None:
        self._ending = self._loop.create_future()
        async with self._channel() as channel:
            stub = draft_pb2_grpc.DraftServiceStub(channel)
            self._said = self._key.metadata()
            call = stub.Speculate(metadata=self._said)
            try:
                async with asyncio.timeout(_HANDSHAKE_SECONDS):
                    await call.write(draft_pb2.SpeculateRequest(hello=self._hello))
                    welcome = await call.read()
                if not isinstance(welcome, draft_pb2.SpeculateResponse):
                    raise _end(await call.code(), await call.details())
                self._up(welcome)
                await self._serve(call)
            except asyncio.InvalidStateError:
                # Writing to a call that has ended: its status says why.
                raise _end(await call.code(), await call.details()) from None
            except grpc.aio.AioRpcError as fault:
                if fault.code() in _FATAL:
                    raise Refused(fault.details() or fault.code().name) from fault
                raise
            finally:
                call.cancel()

    async def _serve(self, call: LinkCall) -> None:
        """Carry frames both ways until either way ends."""
        ways = {
            asyncio.ensure_future(self._send(call)),
            asyncio.ensure_future(self._receive(call)),
            asyncio.ensure_future(self._end_when_told()),
        }
        try:
            done, _ = await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            for way in done:
                way.result()
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)

    async def _send(self, call: LinkCall) -> None:
        while True:
            frame = await self._frames.get()
            self.traffic.sent(frame)
            await call.write(frame)

    async def _receive(self, call: LinkCall) -> None:
        while True:
            message = await call.read()
            if not isinstance(message, draft_pb2.SpeculateResponse):
                raise _end(await call.code(), await call.details())
            self.traffic.received(message)
            self._report(wire.link_frame(self._index, message))

    async def _end_when_told(self) -> None:
        raise await self._ending

    def _up(self, message: draft_pb2.SpeculateResponse) -> None:
        """Check the welcome and tell the engine."""
        if not message.HasField("welcome"):
            raise Refused("its first frame is not a welcome")
        welcome = message.welcome
        if not is_supported(welcome.protocol_version):
            raise Refused(
                f"it speaks version {welcome.protocol_version} of the draft protocol, "
                f"this target {PROTOCOL_VERSION}"
            )
        drafter = welcome.drafter
        ours = self._hello.tokenizer_fingerprint
        if drafter.tokenizer_fingerprint not in ("", ours):
            raise Refused("its tokenizer differs from the target's")
        while not self._frames.empty():
            self._frames.get_nowait()
        self.status, self.reason, self.kind = LinkStatus.READY, "", drafter.kind
        description = DrafterDescription(drafter.kind, drafter.model_id, drafter.max_sessions)
        self._report(LinkUp(self._index, description))
        log.info("draft_link_up", address=self.address, kind=drafter.kind, model=drafter.model_id)

    def _down(self, status: LinkStatus, reason: str) -> None:
        was_ready = self.status is LinkStatus.READY
        if was_ready or reason != self.reason:
            log.warning("draft_link_down", address=self.address, reason=reason, state=status.value)
        self.status, self.reason = status, reason
        if was_ready:
            self.num_losses += 1
            self._report(LinkDown(self._index, reason))

    def _channel(self) -> grpc.aio.Channel:
        if self._certificates is None:
            return grpc.aio.insecure_channel(self.address, options=_CHANNEL_OPTIONS)
        options: list[tuple[str, int | str]] = [*_CHANNEL_OPTIONS]
        if self._certified_name is not None:
            options.append(("grpc.ssl_target_name_override", self._certified_name))
        credentials = self._certificates.credentials()
        return grpc.aio.secure_channel(self.address, credentials, options=options)


_FATAL = frozenset(
    {
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.INVALID_ARGUMENT,
    }
)
"""Statuses that the same call would meet again."""


def _end(code: grpc.StatusCode, details: str | None) -> Exception:
    """What the end of the stream means for the link."""
    if code in _FATAL:
        return Refused(details or code.name)
    return TimeoutError(details or f"the drafter ended the stream ({code.name})")


def _describe(fault: BaseException) -> str:
    if isinstance(fault, grpc.aio.AioRpcError):
        return fault.details() or fault.code().name
    return str(fault) or type(fault).__name__
