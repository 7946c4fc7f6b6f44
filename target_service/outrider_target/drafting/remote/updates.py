"""What target and drafter tell each other, in domain terms. Knows nothing of the wire."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from outrider_runtime.draft_tree import Limits, Proposal

from outrider_target.requests.request import GenerationRequest


class OpenSession(NamedTuple):
    """Start drafting for a sequence."""

    session: int
    token_ids: Sequence[int]
    request: GenerationRequest
    sample_index: int
    draft_temperature: float
    """Divides the drafter's scores before the shared noise is added."""
    limits: Limits


class CommitTokens(NamedTuple):
    """Positions from `base_length` on are these tokens."""

    session: int
    base_length: int
    token_ids: Sequence[int]
    limits: Limits


class CloseSession(NamedTuple):
    """Forget a sequence."""

    session: int


Update = OpenSession | CommitTokens | CloseSession


class DrafterDescription(NamedTuple):
    """What a drafter says of itself."""

    kind: str
    model_id: str
    max_sessions: int


class Growth(NamedTuple):
    """Proposals for a session."""

    session: int
    base_length: int
    proposals: Sequence[Proposal]
    complete: bool


class Resync(NamedTuple):
    """The drafter holds less of a session than the target thinks."""

    session: int
    held_length: int
    refused: bool
    reason: str


class LinkAdded(NamedTuple):
    """There is a link more; it is not up yet. Reported in the order of the indices."""

    link: int
    post: Callable[[Sequence[Update]], None]
    """Hands a round's updates to the link. Never blocks."""
    expel: Callable[[str], None]
    """Closes the link for a while because the drafter misbehaves."""


class LinkUp(NamedTuple):
    """A link is ready."""

    link: int
    drafter: DrafterDescription


class LinkDown(NamedTuple):
    """A link is gone; its sessions are unknown on the other side."""

    link: int
    reason: str


class LinkFrame(NamedTuple):
    """A frame of a drafter."""

    link: int
    arrived_at: float
    """`time.monotonic()` at arrival: the engine may look at it a forward later."""
    growths: Sequence[Growth]
    resyncs: Sequence[Resync]


LinkEvent = LinkAdded | LinkUp | LinkDown | LinkFrame
