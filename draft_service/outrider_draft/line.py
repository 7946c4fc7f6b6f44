"""What a proposer extends, and by what. Knows nothing of trees, sessions or models."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from outrider_runtime.sparse_distribution import SparseDistribution

from outrider_draft.updates import SessionKey, SessionRequest


class Proposed(NamedTuple):
    """A token to extend a chain, with the drafter's log-probability of it."""

    token_id: int
    log_prob: float
    distribution: SparseDistribution | None = None
    """What it was drawn from, if the target has to know; the log-probability is then that of the
    most probable token of it."""


class Line(Protocol):
    """What a proposer extends: a session's chain, or a side line of it."""

    @property
    def key(self) -> SessionKey:
        """Unique among all lines."""

    @property
    def request(self) -> SessionRequest:
        """What is asked."""

    @property
    def tokens(self) -> list[int]:
        """Committed tokens, then its own."""
