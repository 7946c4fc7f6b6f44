"""Callers that ask over and over, and leave in every way callers leave; each call is accounted."""

from __future__ import annotations

import asyncio
import collections
import random
import time
from typing import Any

from outrider_client import (
    AsyncClient,
    DeadlineExceededError,
    OutriderError,
    OverloadedError,
    SpeculationConfig,
    StreamInterruptedError,
)
from soak.traffic import COMBINED, REMOTE, Kind, TokenIds, token_ids

# How a caller behaves, and how often.
_MANNERS = {
    "reads on": 66,
    "reads slowly": 5,
    "cancels": 10,
    "aborts": 5,
    "has a deadline": 8,
    "vanishes": 6,
}


class Ledger:
    """How every call ended: nothing is sent that is not in here once."""

    def __init__(self) -> None:
        self.sent = 0
        self.ends: collections.Counter[str] = collections.Counter()
        self.kinds: collections.Counter[str] = collections.Counter()
        self.differences: list[dict[str, Any]] = []
        self.failures: list[str] = []
        self.drafted: collections.Counter[str] = collections.Counter()
        self.accepted: collections.Counter[str] = collections.Counter()
        self.num_tokens = 0
        self.seconds: list[float] = []

    def enter(self, end: str) -> None:
        """One call ended so."""
        self.ends[end] += 1


class CallerOverAndOver:
    """One caller: a request, an end, the next request, until told to stop."""

    def __init__(self, address: str, mix: list[Kind], ledger: Ledger, seed: int) -> None:
        self._address = address
        self._mix = mix
        self._ledger = ledger
        self._chance = random.Random(seed)

    async def run(self, stop: asyncio.Event) -> None:
        """Ask until `stop`; what runs then is finished."""
        client = AsyncClient(self._address, max_retries=0, timeout=120)
        try:
            while not stop.is_set():
                manner = self._chance.choices(list(_MANNERS), list(_MANNERS.values()))[0]
                kind = self._chance.choice(self._mix)
                self._ledger.sent += 1
                self._ledger.kinds[kind.name] += 1
                if manner == "vanishes":
                    alone = AsyncClient(self._address, max_retries=0, timeout=120)
                    await self._ask(alone, kind, manner)
                else:
                    await self._ask(client, kind, manner)
        finally:
            await client.close()

    async def _ask(self, client: AsyncClient, kind: Kind, manner: str) -> None:
        speculation: SpeculationConfig = self._chance.choice([COMBINED, REMOTE])
        arguments = kind.arguments(speculation)
        if manner == "has a deadline":
            arguments["timeout"] = self._chance.uniform(0.02, 0.6)
        leave_after = self._chance.randint(0, 12)
        try:
            await self._read(client, kind, manner, arguments, leave_after)
        except OverloadedError as error:
            self._ledger.enter("refused with a delay" if error.retry_after else "refused")
            await asyncio.sleep(error.retry_after or 0)
        except DeadlineExceededError:
            self._ledger.enter("deadline")
        except StreamInterruptedError as error:
            if isinstance(error.__cause__, DeadlineExceededError) and manner == "has a deadline":
                self._check_beginning(kind, error.partial)
                self._ledger.enter("deadline")
            else:
                self._fail(kind, manner, error)
        except OutriderError as error:
            self._fail(kind, manner, error)

    async def _read(
        self,
        client: AsyncClient,
        kind: Kind,
        manner: str,
        arguments: dict[str, Any],
        leave_after: int,
    ) -> None:
        started = time.monotonic()
        got: TokenIds = [[] for _ in kind.expected]
        async with client.stream(**arguments) as stream:
            count = 0
            async for chunk in stream:
                got[chunk.sequence_index] += chunk.token_ids
                count += 1
                if count > leave_after and manner in ("cancels", "vanishes", "aborts"):
                    break
                if manner == "reads slowly":
                    await asyncio.sleep(0.05)
            else:
                self._complete(kind, token_ids(stream.final), stream.final.speculation)
                self._ledger.seconds.append(time.monotonic() - started)
                if manner == "vanishes":
                    await client.close()
                return
            self._check_prefix(kind, got)
            if manner == "aborts":
                await client.abort(stream.started.request_id)
            elif manner == "vanishes":
                await client.close()  # the whole connection goes, not the call
        self._ledger.enter({"cancels": "cancelled", "aborts": "aborted"}.get(manner, "vanished"))

    def _complete(self, kind: Kind, got: TokenIds, speculation: Any) -> None:
        if got == kind.expected:
            self._ledger.enter("whole")
        else:
            self._ledger.enter("different")
            self._differs(kind, got)
        self._ledger.num_tokens += sum(map(len, got))
        self._ledger.drafted[kind.name] += speculation.num_draft_tokens
        self._ledger.accepted[kind.name] += speculation.num_accepted_tokens

    def _check_beginning(self, kind: Kind, partial: Any) -> None:
        if partial is not None:
            self._check_prefix(kind, token_ids(partial))

    def _check_prefix(self, kind: Kind, got: TokenIds) -> None:
        """What had arrived of an answer that was left is its beginning."""
        pairs = zip(got, kind.expected, strict=False)
        if any(part != whole[: len(part)] for part, whole in pairs):
            self._differs(kind, got)

    def _differs(self, kind: Kind, got: TokenIds) -> None:
        if len(self._ledger.differences) < 20:
            self._ledger.differences.append(
                {"kind": kind.name, "got": got, "expected": kind.expected}
            )

    def _fail(self, kind: Kind, manner: str, error: OutriderError) -> None:
        self._ledger.enter("failed")
        self._ledger.failures.append(f"{kind.name}, {manner}: {type(error).__name__} {error}")
