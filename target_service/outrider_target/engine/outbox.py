"""The way out of the engine thread: a round's events reach the loop in one call."""

from __future__ import annotations

from outrider_runtime.loop_calls import LoopCalls

from outrider_target.engine.admission import LiveRequests
from outrider_target.engine.events import Event
from outrider_target.engine.sequence import RequestState


class Outbox:
    """Collects events in the engine thread and hands them to the loop; never blocks."""

    def __init__(self, loop: LoopCalls, requests: LiveRequests) -> None:
        self._loop = loop
        self._requests = requests
        self._events: list[tuple[RequestState, Event]] = []

    def put(self, state: RequestState, event: Event) -> None:
        """Keep an event until the end of the round."""
        self._events.append((state, event))

    def flush(self) -> None:
        """Hand over what there is."""
        if self._events:
            events, self._events = self._events, []
            self._loop.call_soon(self._requests.dispatch, events)
