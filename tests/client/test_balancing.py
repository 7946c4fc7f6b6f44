"""A name with several addresses is a fleet, as a headless Service of Kubernetes is one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from client.fake_server import FakeServer

CALLS = 12


@pytest.fixture
def fleet() -> Iterator[list[FakeServer]]:
    with FakeServer() as one, FakeServer() as other:
        yield [one, other]


def name_of(fleet: list[FakeServer]) -> str:
    return "ipv4:" + ",".join(server.address for server in fleet)


def calls_at(server: FakeServer) -> int:
    return len(server.received)


async def test_calls_are_spread_over_all(
    connect: Callable[..., Any], fleet: list[FakeServer]
) -> None:
    async with connect(name_of(fleet)) as client:
        for _ in range(CALLS):
            await client.call("generate", "abc")
    assert sum(map(calls_at, fleet)) == CALLS
    # The second connection may come up a little later.
    assert all(calls_at(server) >= CALLS // 3 for server in fleet)


async def test_one_that_is_gone_is_passed_over(
    connect: Callable[..., Any], fleet: list[FakeServer]
) -> None:
    async with connect(name_of(fleet)) as client:
        for _ in range(CALLS):
            await client.call("generate", "abc")
        fleet[0].stop()
        before = calls_at(fleet[1])
        for _ in range(CALLS):
            await client.call("generate", "abc")
        assert calls_at(fleet[1]) == before + CALLS
