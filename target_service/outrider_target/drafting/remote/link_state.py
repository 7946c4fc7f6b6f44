"""A draft link as the engine thread sees it. Knows nothing of gRPC: `link` does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from outrider_target.drafting.remote.patience import LinkPace
from outrider_target.drafting.remote.updates import Update

if TYPE_CHECKING:
    from outrider_target.drafting.remote.remote_session import RemoteSession


@dataclass(slots=True, eq=False)
class LinkState:
    """A link as the engine sees it."""

    index: int
    post: Callable[[Sequence[Update]], None]
    """Hands a round's updates to the link. Never blocks."""
    expel: Callable[[str], None]
    """Closes the link for a while because the drafter misbehaves."""
    up: bool = False
    kind: str = ""
    capacity: int = 0
    pace: LinkPace = field(default_factory=LinkPace)
    offences: int = 0
    try_again_at: float = 0.0
    """When, by `time.monotonic()`, it may be tried again after it did not answer."""
    sessions: dict[int, RemoteSession] = field(default_factory=dict)
    pending: list[Update] = field(default_factory=list)

    @property
    def has_room(self) -> bool:
        """Whether one more session may be opened."""
        return self.up and len(self.sessions) < self.capacity
