"""What a bad network does to a link: frames come late, twice, in another order, or not at all.

gRPC itself loses nothing; a link that is cut and restored, a proxy, or a peer that drops what it
cannot serve does. Draft trees survive all of it, and that is what can be tried here.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from outrider.v1 import draft_pb2

from outrider_conformance.streams import LinkEnded, Stream

Frame = TypeVar("Frame")


@dataclass(frozen=True, slots=True)
class Faults:
    """How bad the network is, in each direction.

    Attributes:
        delay: A frame takes up to so many seconds; those behind it wait, so order is kept.
        loss: Share of the frames that never arrive.
        duplication: Share of the frames that arrive twice.
        reordering: Share of the frames that arrive after the one behind them.
        seed: The same seed does the same to the same frames.
    """

    delay: float = 0.0
    loss: float = 0.0
    duplication: float = 0.0
    reordering: float = 0.0
    seed: int = 0


class FaultyStream:
    """A stream with faults between its ends. The handshake passes unharmed."""

    def __init__(self, stream: Stream, faults: Faults) -> None:
        """Wrap a stream; it is killed with this one."""
        self._stream = stream
        self._received: asyncio.Queue[draft_pb2.SpeculateResponse | LinkEnded] = asyncio.Queue()
        self._outward = _Way[draft_pb2.SpeculateRequest](
            faults, random.Random(faults.seed), stream.write
        )
        self._inward = _Way[draft_pb2.SpeculateResponse](
            faults, random.Random(~faults.seed), self._received.put
        )
        self._reader = asyncio.create_task(self._read())

    @property
    def harmed(self) -> int:
        """Frames lost, doubled or put behind another so far, both ways."""
        return self._outward.harmed + self._inward.harmed

    def heal(self) -> None:
        """From now on frames pass unharmed."""
        self._outward.faults = self._inward.faults = Faults()

    async def write(self, frame: draft_pb2.SpeculateRequest) -> None:
        """Send a frame on its way."""
        await self._outward.carry(frame)

    async def read(self) -> draft_pb2.SpeculateResponse:
        """Wait for a frame that arrives."""
        frame = await self._received.get()
        if isinstance(frame, LinkEnded):
            self._received.put_nowait(frame)
            raise frame
        return frame

    async def kill(self) -> None:
        """Cut the link."""
        await self._stream.kill()
        await self._reader

    async def _read(self) -> None:
        try:
            while True:
                await self._inward.carry(await self._stream.read())
        except LinkEnded as end:
            self._received.put_nowait(end)


class _Way(Generic[Frame]):
    """One direction."""

    def __init__(
        self, faults: Faults, chance: random.Random, arrive: Callable[[Frame], Awaitable[None]]
    ) -> None:
        self.faults = faults
        self.harmed = 0
        self._chance = chance
        self._arrive = arrive
        self._first = True
        self._held: list[Frame] = []

    async def carry(self, frame: Frame) -> None:
        if self._first:  # hello or welcome
            self._first = False
            await self._arrive(frame)
            return
        if self.faults.delay:
            await asyncio.sleep(self._chance.uniform(0, self.faults.delay))
        if self._happens(self.faults.loss):
            return
        if self._happens(self.faults.reordering):
            self._held.append(frame)
            return
        held, self._held = self._held, []
        for arriving in (frame, *held):
            await self._arrive(arriving)
        if self._happens(self.faults.duplication):
            await self._arrive(frame)

    def _happens(self, share: float) -> bool:
        happens = self._chance.random() < share
        self.harmed += happens
        return happens
