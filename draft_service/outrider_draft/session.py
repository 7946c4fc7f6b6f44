"""One sequence of one target: its tree, and what its target has yet to be told.

Knows nothing of models, threads or gRPC. The tree is a chain: `tokens` is the committed text and
the chain below it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from outrider_runtime.draft_tree import ROOT, DraftTree, Limits, Node, Proposal

from outrider_draft.updates import Grown, Opened, SessionKey, SessionRequest


class Proposed(NamedTuple):
    """A token to extend a chain, with the drafter's log-probability of it."""

    token_id: int
    log_prob: float


@dataclass(slots=True)
class Session:
    """What is known and proposed of one sequence."""

    key: SessionKey
    request: SessionRequest
    limits: Limits
    tree: DraftTree
    max_length: int
    """Longest sequence, chain included, that can be extended."""
    tokens: list[int] = field(default_factory=list)
    """Committed tokens, then those of the chain."""
    chain: list[Node] = field(default_factory=list)
    exhausted: bool = False
    """The proposer has nothing to add before the next commit."""
    opened_at: float = 0.0
    """Seconds, from any start."""
    last_used: float = 0.0
    """Seconds, of the last word from the target."""
    waited: int = 0
    """Steps that went by without the growth it wants."""
    _unsent: list[Node] = field(default_factory=list)
    _steps_unsent: int = 0
    """Steps that grew what was not sent yet."""
    _answer_owed: bool = True
    """The target was not told yet that growth is complete."""

    @classmethod
    def open(
        cls, opened: Opened, *, max_length: int, now: float = 0.0, last_id: int = ROOT
    ) -> Session:
        """Start a session.

        Args:
            opened: What the target said.
            max_length: Longest sequence that can be extended, in tokens.
            now: Seconds, from any start.
            last_id: Last node id of the session it replaces: ids are never used twice.
        """
        return cls(
            key=opened.key,
            request=opened.request,
            limits=opened.limits,
            tree=DraftTree(opened.token_ids, last_id=last_id),
            max_length=max_length,
            tokens=list(opened.token_ids),
            opened_at=now,
            last_used=now,
        )

    @property
    def path_log_prob(self) -> float:
        """How probable the chain is, as a whole."""
        return sum(node.log_prob for node in self.chain)

    @property
    def below_window(self) -> bool:
        """Whether its target still lacks tokens for the next round."""
        return len(self.chain) < self.limits.window

    def commit(self, base_length: int, token_ids: Sequence[int], limits: Limits | None) -> int:
        """Take in what the target decided.

        Returns:
            The length of the common prefix of `tokens` before and after.

        Raises:
            CommitGap: Tokens are missing before `base_length`.
        """
        start = min(base_length, self.tree.committed_length)
        self.tree.commit(base_length, token_ids)
        if limits is not None:
            self.limits = limits
        self.chain = self.tree.best_path()
        tail = [*self.tree.token_ids[start:], *(node.token_id for node in self.chain)]
        unchanged = start
        for old, new in zip(self.tokens[start:], tail, strict=False):
            if old != new:
                break
            unchanged += 1
        self.tokens[start:] = tail
        surviving = {node.id for node in self.chain}
        self._unsent = [node for node in self._unsent if node.id in surviving]
        self.exhausted = False
        self._answer_owed = True
        self.waited = 0
        return unchanged

    def room(self) -> int:
        """How many more tokens the chain may get before the next commit."""
        if self.exhausted or self._path_ended():
            return 0
        depth = len(self.chain)
        return max(
            0,
            min(
                self.limits.depth - depth,
                self.limits.max_nodes - len(self.tree),
                # The target always decides one token more than it verifies.
                self.request.parameters.max_length - 1 - len(self.tokens),
                self.max_length - len(self.tokens),
            ),
        )

    def extend(self, proposed: Iterable[Proposed]) -> int:
        """Add tokens to the chain while it may grow; returns how many were added."""
        added = 0
        for token_id, log_prob in proposed:
            if self.room() == 0:
                break
            parent = self.chain[-1].id if self.chain else ROOT
            node = self.tree.add(parent, token_id, log_prob)
            self.chain.append(node)
            self.tokens.append(token_id)
            self._unsent.append(node)
            added += 1
        self._steps_unsent += added > 0
        return added

    def take_due(self) -> Grown | None:
        """What the target should be told now, if anything; it counts as told."""
        complete = self.room() == 0
        owed = complete and (self._answer_owed or self._unsent)
        if not (owed or self._window_unsent() or self._ahead_unsent()):
            return None
        if complete:
            self._answer_owed = False
        self._steps_unsent = 0
        first = self.chain[0].id if self.chain else ROOT
        proposals = [
            Proposal(
                node.id,
                # The parent of the chain's first node may be committed, and unknown to the target.
                ROOT if node.id == first else node.parent_id,
                node.token_id,
                node.log_prob,
            )
            for node in self._unsent
        ]
        self._unsent.clear()
        return Grown(self.key, self.tree.committed_length, proposals, complete)

    def _window_unsent(self) -> bool:
        """Whether all that is wanted for the next round is there, and some of it was not sent."""
        if self.below_window or not self._unsent:
            return False
        return self._unsent[0].id <= self.chain[self.limits.window - 1].id

    def _ahead_unsent(self) -> bool:
        """Whether the steps of another window went by, all of them beyond the present one.

        What was run ahead helps only if it is there before the target's answer leaves, and nobody
        knows when that is: so it is sent now and then, not at the end alone.
        """
        return not self.below_window and self._steps_unsent >= self.limits.window

    def _path_ended(self) -> bool:
        parameters = self.request.parameters
        if not self.chain:
            generated = self.tree.committed_length > self.request.num_prompt_tokens
            return generated and self.tokens[-1] in parameters.eos_token_ids
        leaf = self.chain[-1]
        unsure = math.exp(leaf.log_prob) < self.limits.confidence_threshold
        return unsure or leaf.token_id in parameters.eos_token_ids
