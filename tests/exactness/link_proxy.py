"""A draft service between a target and a real one, which spoils the link by a script.

Passes frames on as they are; the script decides which, when, how often, and when the link dies.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import grpc
from exactness.cable import Cable, cable
from exactness.loop_thread import PATIENCE
from outrider.v1 import draft_pb2, draft_pb2_grpc
from outrider_runtime.server import MAY_PING

Request = draft_pb2.SpeculateRequest
Response = draft_pb2.SpeculateResponse


class Death(StrEnum):
    """How a link ends."""

    END = "the stream ends"
    ABORT = "the call fails"
    CUT = "the connection breaks"


class Dies(Exception):
    """The drafter dies now."""

    def __init__(self, death: Death) -> None:
        super().__init__(death.value)
        self.death = death


class Script:
    """What happens on one link: by default, nothing but counting."""

    def __init__(self) -> None:
        self.num_requests = 0
        self.num_responses = 0
        self.send: Callable[[Response], None] = _nowhere
        """Sends the target a frame at any time."""

    def request(self, frame: Request) -> Iterable[Request]:
        """Frames for the drafter in place of one from the target. May raise `Dies`."""
        self.num_requests += 1
        return [frame]

    def response(self, frame: Response) -> Iterable[Response]:
        """Frames for the target in place of one from the drafter. May raise `Dies`."""
        self.num_responses += 1
        return [frame]

    def begun(self) -> None:
        """Called before anything is sent. May raise `Dies`."""


def _nowhere(frame: Response) -> None:
    raise AssertionError("the script does not play")


class DiesAfter(Script):
    """Dies right after the n-th frame to the target, or on receiving the n-th frame from it."""

    def __init__(
        self,
        death: Death,
        *,
        num_responses: int | None = None,
        num_requests: int | None = None,
    ) -> None:
        super().__init__()
        self._death = death
        self._last_response = num_responses
        self._last_request = num_requests
        self.died = False

    def begun(self) -> None:
        if self._last_response == 0:
            self._die()

    def request(self, frame: Request) -> Iterable[Request]:
        passed = super().request(frame)
        if self.num_requests == self._last_request:
            self._die()
        return passed

    def response(self, frame: Response) -> Iterable[Response]:
        yield from super().response(frame)
        if self.num_responses == self._last_response:
            self._die()

    def _die(self) -> None:
        self.died = True
        raise Dies(self._death)


@dataclass(slots=True)
class Proxy:
    """A running proxy."""

    cable: Cable
    links: list[Script] = field(default_factory=list)
    """The scripts of the links so far, each played once."""

    @property
    def address(self) -> str:
        return self.cable.address


class _Servicer(draft_pb2_grpc.DraftServiceServicer):
    def __init__(self, upstream: str, make_script: Callable[[int], Script]) -> None:
        self._upstream = upstream
        self._make_script = make_script
        self.proxy: Proxy | None = None

    async def Speculate(self, request_iterator: Any, context: Any) -> AsyncIterator[Response]:
        assert self.proxy is not None
        script = self._make_script(len(self.proxy.links))
        self.proxy.links.append(script)
        async with grpc.aio.insecure_channel(self._upstream) as channel:
            stub: draft_pb2_grpc.DraftServiceAsyncStub = draft_pb2_grpc.DraftServiceStub(channel)
            call = stub.Speculate()
            try:
                async for frame in _played(request_iterator, call, script):
                    yield frame
            except Dies as dying:
                match dying.death:
                    case Death.END:
                        return
                    case Death.ABORT:
                        await context.abort(grpc.StatusCode.UNAVAILABLE, "the drafter died")
                    case Death.CUT:
                        # The frames before it must have left: it breaks after them, not with them.
                        self.proxy.cable.cut()
            finally:
                call.cancel()

    async def Describe(self, request: Any, context: Any) -> draft_pb2.DescribeResponse:
        async with grpc.aio.insecure_channel(self._upstream) as channel:
            stub: draft_pb2_grpc.DraftServiceAsyncStub = draft_pb2_grpc.DraftServiceStub(channel)
            return await stub.Describe(request)


async def _played(
    request_iterator: Any, call: Any, script: Script
) -> AsyncIterator[draft_pb2.SpeculateResponse]:
    """What the target gets to see. Ends with the drafter's stream."""
    script.begun()
    outgoing: asyncio.Queue[Response | BaseException | None] = asyncio.Queue()
    script.send = outgoing.put_nowait
    ways = [
        asyncio.ensure_future(_pass_requests(request_iterator, call, script, outgoing)),
        asyncio.ensure_future(_pass_responses(call, script, outgoing)),
    ]
    try:
        while (item := await outgoing.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)


async def _pass_requests(
    request_iterator: Any, call: Any, script: Script, outgoing: asyncio.Queue[Any]
) -> None:
    try:
        async for frame in request_iterator:
            for passed in script.request(frame):
                await call.write(passed)
    except Dies as dying:
        outgoing.put_nowait(dying)


async def _pass_responses(call: Any, script: Script, outgoing: asyncio.Queue[Any]) -> None:
    try:
        while (frame := await call.read()) is not grpc.aio.EOF:
            for passed in script.response(frame):
                outgoing.put_nowait(passed)
        outgoing.put_nowait(None)
    except Dies as dying:
        outgoing.put_nowait(dying)


@asynccontextmanager
async def link_proxy(
    upstream: str, make_script: Callable[[int], Script] = lambda _: Script()
) -> AsyncIterator[Proxy]:
    """Serve a proxy to a draft service until the block ends.

    Args:
        upstream: The draft service's address.
        make_script: From the number of a link, counted from 0, to what happens on it.
    """
    servicer = _Servicer(upstream, make_script)
    server = grpc.aio.server(options=[MAY_PING])
    draft_pb2_grpc.add_DraftServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with cable(f"127.0.0.1:{port}") as laid:
            servicer.proxy = Proxy(laid)
            yield servicer.proxy
    finally:
        async with asyncio.timeout(PATIENCE):
            await server.stop(0)
