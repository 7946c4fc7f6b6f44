"""Lines beside a session's chain: guesses at what the target will say in place of a token of it.

A target's answer either goes along the chain or leaves it at one token, its own. With shared noise
the likeliest such tokens are the runners-up of the drafter's own choice, so each of them may be
continued while the target still verifies (speculative speculative decoding, Kumar et al. 2026).
Knows nothing of models, threads or gRPC.
"""

from __future__ import annotations

from dataclasses import dataclass

from outrider_runtime.draft_tree import Node

from outrider_draft.updates import SessionKey, SessionRequest


@dataclass(slots=True, eq=False)
class SideLine:
    """A sibling of a token of the chain, and what follows it."""

    key: SessionKey
    """The session's, with a number of its own."""
    request: SessionRequest
    tokens: list[int]
    """Committed tokens, those of the chain before the sibling, the sibling, its continuation."""
    nodes: list[Node]
    """The sibling and its continuation."""
    log_prob_before: float
    """How probable the chain before the sibling is."""
    most_nodes: int
    """How long it may become."""
    source: SessionKey
    """The line that has the same tokens up to the sibling."""
    num_shared: int = 0
    """How many they are."""
    exhausted: bool = False
    waited: int = 0
    """Steps that went by without the growth it wants."""

    @property
    def path_log_prob(self) -> float:
        """How probable it is, from the last committed token on."""
        return self.log_prob_before + sum(node.log_prob for node in self.nodes)
