"""All connections to draft services: to addresses, and to each address behind a name.

A name stands for as many draft services as there are at the moment: it is looked up again and
again, an address that is new gets a link, and the link of one that is gone is given up.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterable, Sequence

import structlog
from outrider_runtime.listening import join_address

from outrider_target.drafting.remote.link import DraftLink
from outrider_target.drafting.remote.updates import LinkAdded, LinkDown, LinkEvent

log = structlog.get_logger()

NAME_PREFIX = "dns:///"
"""What a name begins with; anything else is an address."""

_LOOKUP_SECONDS = 5.0
"""Seconds between two lookups of a name."""

Connect = Callable[[str, str | None], DraftLink]
"""Makes a link to an address; second the name it was found under, which its certificate bears."""


class DraftLinks:
    """Every link there is or was: its place in `all` is its index in events."""

    def __init__(self, drafts: Iterable[str], connect: Connect) -> None:
        """Nothing is connected before `start`.

        Args:
            drafts: Addresses, HOST:PORT, and names, dns:///HOST:PORT.
            connect: Makes a link.
        """
        self._connect = connect
        self._names = [each.removeprefix(NAME_PREFIX) for each in drafts if _is_name(each)]
        self.all: list[DraftLink] = [connect(each, None) for each in drafts if not _is_name(each)]
        """Links by index; those that were given up as well."""
        self._found: dict[str, dict[str, DraftLink]] = {name: {} for name in self._names}
        self._gone: set[DraftLink] = set()
        self._report: Callable[[LinkEvent], None] = lambda _: None
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def present(self) -> Sequence[tuple[int, DraftLink]]:
        """The links that were not given up, with their indices."""
        return [(index, link) for index, link in enumerate(self.all) if link not in self._gone]

    def start(self, report: Callable[[LinkEvent], None]) -> None:
        """Begin to connect. `report` takes events; called in the loop, must not block."""
        self._report = report
        for link in list(self.all):
            self._begin(link)
        for name in self._names:
            task = asyncio.get_running_loop().create_task(self._follow(name), name=f"drafts-{name}")
            self._tasks.append(task)

    async def stop(self) -> None:
        """Close all connections for good."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(link.stop() for _, link in self.present))

    def _begin(self, link: DraftLink) -> None:
        index = self.all.index(link)
        self._report(LinkAdded(index, link.post, link.expel))
        link.start(index, self._report)

    async def _follow(self, name: str) -> None:
        """Look a name up for as long as the service runs."""
        failed = False
        while True:
            try:
                await self._adopt(name, await _addresses(name))
                failed = False
            except OSError as fault:
                if not failed:  # a name that does not exist yet may exist any moment
                    log.warning("drafts_not_found", name=name, reason=str(fault))
                failed = True
            await asyncio.sleep(_LOOKUP_SECONDS)

    async def _adopt(self, name: str, addresses: set[str]) -> None:
        links = self._found[name]
        for address in sorted(addresses - links.keys()):
            link = links[address] = self._connect(address, name.rpartition(":")[0])
            self.all.append(link)
            self._begin(link)
        for address in links.keys() - addresses:
            link = links.pop(address)
            self._gone.add(link)
            await link.stop()
            self._report(LinkDown(self.all.index(link), "its address is gone"))
            log.info("draft_link_given_up", address=address, name=name)


def _is_name(draft: str) -> bool:
    return draft.startswith(NAME_PREFIX)


async def _addresses(name: str) -> set[str]:
    """What a name stands for now, as HOST:PORT."""
    host, _, port = name.rpartition(":")
    found = await asyncio.get_running_loop().getaddrinfo(host, int(port), type=socket.SOCK_STREAM)
    return {join_address(str(address[0]), int(address[1])) for *_, address in found}
