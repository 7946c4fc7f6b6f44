"""What a peer does in its process: generate from token ids, and say when tokens came.

Knows nothing of processes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

Setting = Mapping[str, Any]
"""How a peer runs a workload; the words are each peer's own."""


class Work(NamedTuple):
    """A workload in token ids."""

    prompts: Sequence[Sequence[int]]
    streams: int
    new_tokens: int
    temperature: float
    """0 is greedy."""
    top_p: float


class Generated(NamedTuple):
    """The answer to one prompt."""

    token_ids: list[int]
    first: float
    """Seconds from when the prompt was handed in to its first token."""
    last: float
    """The same to its last."""


class Answer(NamedTuple):
    """The answers to all prompts, and what was drafted for them as far as the peer tells."""

    generated: list[Generated]
    drafted: int = 0
    accepted: int = 0

    def with_more(self, more: Answer) -> Answer:
        """Both, one behind the other."""
        return Answer(
            self.generated + more.generated,
            self.drafted + more.drafted,
            self.accepted + more.accepted,
        )


class Models(NamedTuple):
    """Folders of transformers' checkpoints."""

    target: Path
    draft: Path


class Engine(Protocol):
    """A peer with its models loaded."""

    def run(self, work: Work, setting: Setting) -> Answer:
        """Generate all of it."""
        ...
