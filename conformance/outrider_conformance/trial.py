"""What a rule is tried on: a running drafter, and links to it."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import grpc
import grpc.aio
from outrider.v1 import draft_pb2, draft_pb2_grpc

from outrider_conformance.faults import Faults, FaultyStream
from outrider_conformance.streams import GrpcStream, Stream
from outrider_conformance.target import TIMEOUT, Target

ANY_VOCABULARY = 1000
"""Vocabulary of the target played here for a drafter that takes any."""


class Trial:
    """A drafter that listens at an address, and what it says of itself."""

    def __init__(
        self, channel: grpc.aio.Channel, described: draft_pb2.DescribeResponse, timeout: float
    ) -> None:
        """Made by `trial`."""
        self.timeout = timeout
        """Seconds after which an answer that does not come is a violation."""
        self.described = described
        self.drafter = described.drafter
        self.vocab_size = described.drafter.vocab_size or ANY_VOCABULARY
        self._channel = channel
        self._chance = random.Random(0)

    async def describe(self) -> draft_pb2.DescribeResponse:
        """Ask the drafter what it is, and how many sessions it holds now."""
        stub: draft_pb2_grpc.DraftServiceAsyncStub = draft_pb2_grpc.DraftServiceStub(self._channel)
        return await stub.Describe(draft_pb2.DescribeRequest(), timeout=10)

    def text(self, length: int = 12) -> list[int]:
        """Token ids that repeat themselves, so that drafters without a model find something."""
        phrase = [self._chance.randrange(self.vocab_size) for _ in range(min(4, length))]
        return [phrase[i % len(phrase)] for i in range(length)]

    def random_text(self, length: int) -> list[int]:
        """Token ids that nobody could guess."""
        return [self._chance.randrange(self.vocab_size) for _ in range(length)]

    def other_than(self, tokens: Sequence[int]) -> int:
        """A token id that is none of these."""
        return next(token for token in range(self.vocab_size) if token not in tokens)

    @asynccontextmanager
    async def link(self, faults: Faults | None = None) -> AsyncIterator[Target]:
        """A link that has been greeted; it is cut when the block ends."""
        async with self.ungreeted(faults) as target:
            await target.hello(fingerprint=self.drafter.tokenizer_fingerprint)
            yield target

    @asynccontextmanager
    async def ungreeted(self, faults: Faults | None = None) -> AsyncIterator[Target]:
        """A link on which nothing was said yet; it is cut when the block ends."""
        stream: Stream = GrpcStream(self._channel)
        if faults is not None:
            stream = FaultyStream(stream, faults)
        target = Target(
            stream, vocab_size=self.vocab_size, tolerant=faults is not None, timeout=self.timeout
        )
        try:
            yield target
        finally:
            await target.disconnect()


@asynccontextmanager
async def trial(address: str, *, timeout: float = TIMEOUT) -> AsyncIterator[Trial]:
    """Reach a drafter.

    Args:
        address: Where it listens, host:port.
        timeout: Seconds after which an answer that does not come is a violation.

    Raises:
        grpc.aio.AioRpcError: It does not answer `Describe`.
    """
    async with grpc.aio.insecure_channel(address) as channel:
        stub: draft_pb2_grpc.DraftServiceAsyncStub = draft_pb2_grpc.DraftServiceStub(channel)
        request = draft_pb2.DescribeRequest()
        described = await stub.Describe(request, timeout=10, wait_for_ready=True)
        yield Trial(channel, described, timeout)
