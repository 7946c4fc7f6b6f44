"""The one thread that owns the proposer.

asyncio never runs a forward, and delivery never blocks a step.
Knows nothing of gRPC.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from typing import NamedTuple

import structlog

from outrider_draft.engine import DraftEngine
from outrider_draft.updates import Message, Update

log = structlog.get_logger(__name__)

_COURTESY = 0.001
"""Seconds that running ahead pauses for an answer to leave, unless there is news. Sending it takes
this interpreter, and on a small machine the cores as well: going on at once delays what is waited
for by a third of a millisecond to gain what may never be."""


class Work(NamedTuple):
    """Updates that belong together, and who wants to know that they were taken in."""

    updates: Sequence[Update]
    taken: Callable[[], None] | None = None


class DraftWorker:
    """Runs a `DraftEngine` in a thread of its own."""

    def __init__(
        self,
        engine: DraftEngine,
        *,
        deliver: Callable[[list[Message]], None],
        failed: Callable[[], None],
    ) -> None:
        """Prepare; `start` begins.

        Args:
            engine: From `start` on it belongs to the thread.
            deliver: Called in the thread with what the targets should be told. Must not block.
            failed: Called in the thread when it cannot go on.
        """
        self._engine = engine
        self._deliver = deliver
        self._failed = failed
        self._inbox: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
        self._waiting_for_rest: list[Callable[[], None]] = []
        self._answer_leaves = False  # and nobody waits for what is grown meanwhile
        self._thread = threading.Thread(target=self._run, name="drafting", daemon=True)

    @property
    def num_sessions(self) -> int:
        """Sessions held."""
        return self._engine.num_sessions

    @property
    def num_waiting(self) -> int:
        """Frames of updates that were not taken in yet."""
        return self._inbox.qsize()

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def submit(self, updates: Sequence[Update], taken: Callable[[], None] | None = None) -> None:
        """Hand over updates.

        Args:
            updates: In the order in which they apply.
            taken: Called in the thread when they were applied.
        """
        self._inbox.put(Work(updates, taken))

    def when_at_rest(self, callback: Callable[[], None]) -> None:
        """Have `callback` called in the thread once nothing is left to draft."""
        self._inbox.put(Work((), lambda: self._waiting_for_rest.append(callback)))

    def stop(self, timeout: float | None = 5.0) -> None:
        """End the thread after the step it is in."""
        self._inbox.put(None)
        if self._thread.is_alive():
            self._thread.join(timeout)

    def _run(self) -> None:
        try:
            while self._take_in():
                if self._engine.has_growth:
                    self._engine.step()
                if messages := self._engine.take_messages():
                    self._deliver(messages)
                    self._answer_leaves = not self._engine.is_waited_for
                if not self._engine.has_growth:
                    self._report_rest()
        except Exception:  # nobody else would notice
            log.exception("drafting_stopped")
            self._failed()

    def _take_in(self) -> bool:
        """Apply what has arrived; wait for something when there is nothing to do. False: stop."""
        timeout = None if not self._engine.has_growth else _COURTESY if self._answer_leaves else 0.0
        self._answer_leaves = False
        while True:
            try:
                work = self._inbox.get(timeout=timeout)
            except queue.Empty:
                return True
            if work is None:
                return False
            for update in work.updates:
                self._engine.apply(update)
            if work.taken is not None:
                work.taken()
            timeout = 0.0

    def _report_rest(self) -> None:
        callbacks, self._waiting_for_rest = self._waiting_for_rest, []
        for callback in callbacks:
            callback()
