"""The port to whatever proposes tokens. Knows nothing of trees on the wire, threads or gRPC."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from outrider_draft.line import Line, Proposed
from outrider_draft.session import Session
from outrider_draft.side_line import SideLine
from outrider_draft.updates import SessionKey


class Description(NamedTuple):
    """What a drafter is."""

    kind: str
    """One of `model`, `prompt-lookup` and `suffix`."""

    model_id: str = ""
    """Name of the draft model; empty without one."""

    vocab_size: int = 0
    """Token ids it knows; 0: any."""

    tokenizer_fingerprint: str = ""
    """Empty when it works on ids alone."""

    max_length: int = 0
    """Longest sequence it can extend, in tokens; 0: any."""

    translates: frozenset[str] = frozenset()
    """Fingerprints of other tokenizers whose ids it understands and proposes."""


class Share(NamedTuple):
    """A session's part of a step."""

    session: Session
    num_rows: int
    """How many of the tokens it has yet to see are processed, at most what `pending` says."""
    side: SideLine | None = None
    """The line that grows; None: its chain."""
    num_tokens: int = 1
    """Tokens that its target lacks: as many may be proposed in one step, or fewer."""
    num_siblings: int = 0
    """Guesses wanted for the next position of the line, beside the first."""

    @property
    def line(self) -> Line:
        """What grows."""
        return self.side or self.session


class Outcome(NamedTuple):
    """What a step brought for a session."""

    proposed: Sequence[Proposed] = ()
    """Tokens that extend the line; none while it catches up."""

    siblings: Sequence[Proposed] = ()
    """Further guesses for the position of the first of them, the best first."""

    exhausted: bool = False
    """Nothing more will come until tokens are committed."""


class OutOfRoom(Exception):
    """A step does not fit; nothing was changed."""


class Proposer(Protocol):
    """Extends chains. Used by one thread."""

    @property
    def description(self) -> Description:
        """What it is."""

    @property
    def rows_are_cheap(self) -> bool:
        """Whether another row in a step costs next to nothing, as on a GPU, or a good deal."""

    def pending(self, line: Line) -> int:
        """How many tokens, at least 1, it has yet to see before it can propose the next."""

    def extend(self, shares: Sequence[Share]) -> list[Outcome]:
        """Do one step for these sessions.

        Raises:
            OutOfRoom: The step does not fit beside the sessions held; nothing was changed.
        """

    def rewind(self, key: SessionKey, length: int) -> None:
        """Learn that a session's tokens from position `length` on are no longer what they were."""

    def adopt(self, key: SessionKey, line: SessionKey) -> None:
        """Learn that a session goes on with the tokens of one of its side lines."""

    def holds(self, key: SessionKey) -> bool:
        """Whether forgetting a session would make room."""

    def forget(self, key: SessionKey) -> None:
        """Drop whatever is held for a line; unknown ones are ignored."""
