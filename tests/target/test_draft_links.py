"""A name stands for all draft services behind it: they come and go without a restart."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from outrider_target.drafting.remote import links as links_module
from outrider_target.drafting.remote.links import DraftLinks
from outrider_target.drafting.remote.updates import LinkAdded, LinkDown, LinkEvent


class FakeLink:
    """A link that only notes what becomes of it."""

    def __init__(self, address: str, name: str | None) -> None:
        self.address = address
        self.name = name
        self.index: int | None = None
        self.stopped = False

    def start(self, index: int, report: Callable[[LinkEvent], None]) -> None:
        self.index = index

    async def stop(self) -> None:
        self.stopped = True

    def post(self, updates: Any) -> None:
        """Nothing is sent here."""

    def expel(self, reason: str) -> None:
        """Nobody misbehaves here."""


class Names:
    """A name service whose answers change."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.addresses: set[str] | OSError = set()
        self.num_lookups = 0
        monkeypatch.setattr(links_module, "_addresses", self._look_up)
        monkeypatch.setattr(links_module, "_LOOKUP_SECONDS", 0.0)

    async def _look_up(self, name: str) -> set[str]:
        assert name == "drafts:50052"
        self.num_lookups += 1
        if isinstance(self.addresses, OSError):
            raise self.addresses
        return self.addresses

    async def answer(self, addresses: Iterable[str] | OSError) -> None:
        """From now on this is the answer; returns when it has been heard."""
        self.addresses = addresses if isinstance(addresses, OSError) else set(addresses)
        heard = self.num_lookups + 2
        async with asyncio.timeout(20):
            while self.num_lookups < heard:
                await asyncio.sleep(0)


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Names:
    return Names(monkeypatch)


async def test_links_follow_what_a_name_stands_for(names: Names) -> None:
    events: list[LinkEvent] = []
    connect: Any = FakeLink
    links = DraftLinks(["there:1", "dns:///drafts:50052"], connect)
    links.start(events.append)

    def present() -> list[str]:
        return [link.address for _, link in links.present]

    await names.answer([])
    assert present() == ["there:1"]
    await names.answer(["10.0.0.1:50052", "10.0.0.2:50052"])
    assert present() == ["there:1", "10.0.0.1:50052", "10.0.0.2:50052"]
    await names.answer(OSError("the name service is down"))
    assert len(present()) == 3, "who was found stays"
    await names.answer(["10.0.0.2:50052", "10.0.0.3:50052"])
    assert present() == ["there:1", "10.0.0.2:50052", "10.0.0.3:50052"]
    await names.answer(["10.0.0.1:50052"])  # the same address again is another link
    assert present() == ["there:1", "10.0.0.1:50052"]
    await links.stop()

    every: list[Any] = list(links.all)
    assert [link.name for link in every] == [None, *["drafts"] * 4]
    assert all(link.stopped for link in every)
    assert [link.index for link in every] == list(range(5))
    assert [each.link for each in events if isinstance(each, LinkAdded)] == list(range(5))
    assert sorted(each.link for each in events if isinstance(each, LinkDown)) == [1, 2, 3]
