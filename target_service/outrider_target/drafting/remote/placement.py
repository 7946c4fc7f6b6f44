"""Which link a session goes to, and when one moves. Pure.

A draft service may serve other targets as well, which nobody here sees; how long it takes to answer
tells. So a link's load is its sessions times its usual answer: the answers a further session would
wait for. A link that no longer answers at all takes sessions only where nobody else does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from outrider_target.drafting.remote.link_state import LinkState

_IMBALANCE = 2.0
"""A session moves to a link when its own is loaded so many times as much, with it gone even: to
move costs the drafter a reading of the whole text."""


class Move(NamedTuple):
    """A session that is better served elsewhere."""

    source: LinkState
    destination: LinkState


def choose(candidates: Sequence[LinkState]) -> LinkState | None:
    """The link for a session to be opened; None without candidates."""
    usual = _usual(candidates)
    return min(
        candidates,
        key=lambda link: (link.pace.stalled, _load(link, len(link.sessions) + 1, usual)),
        default=None,
    )


def move(links: Sequence[LinkState]) -> Move | None:
    """The move that evens out the links best, if one is worth it."""
    up = [link for link in links if link.up]
    destination = choose([link for link in up if link.has_room and not link.pace.stalled])
    if destination is None:
        return None
    usual = _usual(up)
    sources = [link for link in up if link.sessions and link is not destination]
    if stalled := [link for link in sources if link.pace.stalled]:
        return Move(stalled[0], destination)
    source = max(sources, key=lambda link: _load(link, len(link.sessions), usual), default=None)
    if source is None:
        return None
    there = _load(destination, len(destination.sessions) + 1, usual)
    # With one session fewer it must still be no better off than the other with one more.
    stays = _load(source, len(source.sessions) - 1, usual)
    worth = _load(source, len(source.sessions), usual) >= _IMBALANCE * there and stays >= there
    return Move(source, destination) if worth else None


def _usual(links: Sequence[LinkState]) -> float:
    """What to expect of a link that has not answered yet: as much as of the best."""
    return min((link.pace.latency for link in links if link.pace.latency), default=1.0)


def _load(link: LinkState, num_sessions: int, usual: float) -> float:
    return num_sessions * (link.pace.latency or usual)
