"""An event loop in a thread of its own: services run there while a test drives real clients."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")

PATIENCE = 90.0
"""Seconds after which whatever a test waits for has failed."""


class LoopThread:
    """Runs coroutines for threads that have no event loop."""

    def __init__(self, name: str) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name=name, daemon=True)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the loop and wait for its result."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(PATIENCE)

    @contextmanager
    def entered(self, manager: AbstractAsyncContextManager[T]) -> Iterator[T]:
        """Enter an asynchronous context manager on the loop; leaving leaves it there."""
        value = self.run(manager.__aenter__())
        try:
            yield value
        finally:
            self.run(_leave(manager))

    def close(self) -> None:
        """End the thread; what still runs is cancelled."""
        self.run(_cancel_the_others())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(PATIENCE)
        self.loop.close()


class ServiceThreads(NamedTuple):
    """Targets and drafters apart, as in life: what a drafter does holds up no target's loop."""

    targets: LoopThread
    drafters: LoopThread


async def _leave(manager: AbstractAsyncContextManager[Any]) -> None:
    await manager.__aexit__(None, None, None)


async def _cancel_the_others() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
