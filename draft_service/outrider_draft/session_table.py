"""The sessions of all targets: who holds how many, and which was used least recently.

Knows nothing of proposers, threads or gRPC.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Container, Iterator

from outrider_draft.session import Session
from outrider_draft.updates import SessionKey


class SessionTable:
    """Sessions by key, in the order of their last use."""

    def __init__(self) -> None:
        self._sessions: OrderedDict[SessionKey, Session] = OrderedDict()
        self._per_stream: Counter[int] = Counter()

    def __len__(self) -> int:
        return len(self._sessions)

    def __iter__(self) -> Iterator[Session]:
        return iter(self._sessions.values())

    def get(self, key: SessionKey) -> Session | None:
        """The session of that key, if it is held."""
        return self._sessions.get(key)

    def count(self, stream: int) -> int:
        """How many sessions a stream holds."""
        return self._per_stream[stream]

    def add(self, session: Session) -> None:
        """Hold a new session, whose key is not held yet, as the most recently used one."""
        self._sessions[session.key] = session
        self._per_stream[session.key.stream] += 1

    def touch(self, session: Session, *, now: float) -> None:
        """Note that its target spoke."""
        session.last_used = session.asked_at = now
        self._sessions.move_to_end(session.key)

    def remove(self, key: SessionKey) -> Session | None:
        """Forget a session; unknown ones are ignored."""
        session = self._sessions.pop(key, None)
        if session is not None:
            self._per_stream[key.stream] -= 1
            if not self._per_stream[key.stream]:
                del self._per_stream[key.stream]
        return session

    def keys_of(self, stream: int) -> list[SessionKey]:
        """Keys of a stream's sessions."""
        if stream not in self._per_stream:
            return []
        return [key for key in self._sessions if key.stream == stream]

    def least_recently_used(self, *, but: Container[SessionKey] = ()) -> Session | None:
        """The session that was not used for longest, leaving out some."""
        return next((s for s in self._sessions.values() if s.key not in but), None)
