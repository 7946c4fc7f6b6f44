"""The standard health service, `grpc.health.v1`, for asyncio.

Our own, because the library's notifies only one of several watchers once another has gone, and
cannot be set without awaiting. Knows nothing of what makes a service healthy.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any

import grpc
from grpc_health.v1 import health_pb2

SERVICE_NAME = "grpc.health.v1.Health"

_Status = health_pb2.HealthCheckResponse


class HealthServicer:
    """Tells of each named service, and of the server as a whole (""), whether it serves.

    Lives on one event loop; `set_serving` is called there.
    """

    def __init__(self, services: Iterable[str]) -> None:
        self._names = frozenset({"", *services})
        self._serving = False
        self._closed = False
        self._changed = asyncio.Event()

    @property
    def serving(self) -> bool:
        """What the probes are told."""
        return self._serving

    def set_serving(self, serving: bool) -> None:
        """Changes the state of all services and tells the watchers."""
        if self._closed or serving == self._serving:
            return
        self._serving = serving
        self._tell()

    def close(self) -> None:
        """Says NOT_SERVING for good and ends the watches: they would hold up a graceful stop."""
        self._serving = False
        self._closed = True
        self._tell()

    def _tell(self) -> None:
        # Whoever waits for the old event wakes up; whoever comes later waits for the new one.
        self._changed.set()
        self._changed = asyncio.Event()

    async def Check(self, request: Any, context: Any) -> Any:
        """The state of `request.service`; NOT_FOUND for one that is not here."""
        if request.service not in self._names:
            await context.abort(
                grpc.StatusCode.NOT_FOUND, f"no service {request.service!r} on this server"
            )
        return self._status(request.service)

    async def Watch(self, request: Any, _context: Any) -> AsyncIterator[Any]:
        """The state of `request.service` now and at every change."""
        last = None
        while True:
            # All three of one moment: the state may change while the status is being sent.
            changed, closed = self._changed, self._closed
            status = self._status(request.service)
            if status != last:
                last = status
                yield status
            if closed:
                return
            await changed.wait()

    def _status(self, service: str) -> Any:
        if service not in self._names:
            return _Status(status=_Status.SERVICE_UNKNOWN)
        return _Status(status=_Status.SERVING if self._serving else _Status.NOT_SERVING)
