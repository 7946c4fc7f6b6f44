"""Live requests: who may come in, who is there, and where their events go.

Lives in the asyncio loop. The engine thread hands over a round's events in one call; a request's
queue is bounded by the tokens it may generate, so a slow reader costs memory, never time.
"""

from __future__ import annotations

import asyncio

from outrider_runtime.errors import Draining, DuplicateRequest, Overloaded

from outrider_target.engine.events import Event, RequestCompleted, RequestFailed, TokensDecided
from outrider_target.engine.sequence import RequestState
from outrider_target.engine.token_quotas import TokenQuotas

_RETRY_AFTER_SECONDS = 1.0


class LiveRequests:
    """The requests between admission and their last message.

    Args:
        max_requests: Requests that may live at a time.
        quotas: Who has how many tokens left; what is generated is taken from it.
    """

    def __init__(self, *, max_requests: int, quotas: TokenQuotas) -> None:
        self._max_requests = max_requests
        self._quotas = quotas
        self._queues: dict[RequestState, asyncio.Queue[Event]] = {}
        self._by_id: dict[str, RequestState] = {}
        self._replays: dict[RequestState, asyncio.Queue[Event]] = {}
        self._draining = False
        self._idle = asyncio.Event()
        self._idle.set()

    def __len__(self) -> int:
        """Number of live requests."""
        return len(self._queues)

    @property
    def draining(self) -> bool:
        """Whether new requests are refused because the server goes away."""
        return self._draining

    def check_room(self, request_id: str) -> None:
        """Refuse what cannot come in now, before any work is done for it.

        Raises:
            Draining: The server is shutting down.
            DuplicateRequest: A live request has the same id.
            Overloaded: Too many requests wait.
        """
        if self._draining:
            raise Draining
        if request_id in self._by_id:
            raise DuplicateRequest(request_id)
        if len(self._queues) >= self._max_requests:
            raise Overloaded(_RETRY_AFTER_SECONDS)

    def add(self, state: RequestState) -> asyncio.Queue[Event]:
        """Let a request in; returns the queue of its events.

        Raises:
            OutriderError: As `check_room`.
        """
        self.check_room(state.request.id)
        events: asyncio.Queue[Event] = asyncio.Queue()
        self._queues[state] = events
        self._by_id[state.request.id] = state
        self._idle.clear()
        return events

    def add_replay(self, state: RequestState) -> asyncio.Queue[Event]:
        """The queue of a replay's events. It takes nobody's place, and nobody waits for its end."""
        events = self._replays[state] = asyncio.Queue()
        return events

    def remove(self, state: RequestState) -> None:
        """Forget a request; its further events are dropped."""
        if state.request.is_replay:
            self._replays.pop(state, None)
            return  # a request that lives may have the same id
        self._queues.pop(state, None)
        self._by_id.pop(state.request.id, None)
        if not self._queues:
            self._idle.set()

    def get(self, request_id: str) -> RequestState | None:
        """The live request of that id."""
        return self._by_id.get(request_id)

    def dispatch(self, events: list[tuple[RequestState, Event]]) -> None:
        """Pass on a round's events. With its last one a request gives up its place.

        A reader that never reads thus holds memory for the tokens it may have, but no place.
        """
        for state, event in events:
            queues = self._replays if state.request.is_replay else self._queues
            if (queue := queues.get(state)) is not None:
                queue.put_nowait(event)
                if isinstance(event, TokensDecided) and state.request.is_counted:
                    self._quotas.charge(state.account, len(event.token_ids))
                if isinstance(event, RequestCompleted | RequestFailed):
                    self.remove(state)

    def fail_all(self, fault: BaseException) -> None:
        """End every live request, and refuse new ones, because the engine is gone."""
        self._draining = True
        error = RuntimeError("the engine died")
        error.__cause__ = fault
        for queue in self._queues.values():
            queue.put_nowait(RequestFailed(error))

    async def drain(self) -> None:
        """Refuse new requests and wait until the last one has ended."""
        self._draining = True
        await self._idle.wait()
