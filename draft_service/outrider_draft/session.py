"""One sequence of one target: what is committed, and what is proposed of it.

Knows nothing of models, threads or gRPC. The tree is a chain and, where its target grants them,
side lines: `tokens` is the committed text and the chain below it. When the target hears of new
nodes is decided in `answers`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from outrider_runtime.draft_tree import ROOT, DraftTree, Limits, Node

from outrider_draft.line import Proposed
from outrider_draft.session_trace import SessionTrace
from outrider_draft.side_line import SideLine
from outrider_draft.updates import Opened, SessionKey, SessionRequest


class Walk(NamedTuple):
    """What a commit made of a session."""

    unchanged: int
    """Length of the common prefix of `tokens` before and after, unless a line was adopted."""
    adopted: SessionKey | None = None
    """The side line that is the chain now."""
    dropped: Sequence[SessionKey] = ()
    """Side lines that are no more."""
    agreed: bool | None = None
    """Whether the target went along the chain as far as there was one; None: there was none."""


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
    sides: list[SideLine] = field(default_factory=list)
    exhausted: bool = False
    """The proposer has nothing to add before the next commit."""
    opened_at: float = 0.0
    """Seconds, from any start."""
    last_used: float = 0.0
    """Seconds, of the last word from the target."""
    asked_at: float | None = None
    """Seconds, of the word from the target that is not answered in full yet."""
    trace: SessionTrace | None = None
    """What is recorded of it; None: nothing is."""
    waited: int = 0
    """Steps that went by without the growth it wants."""
    unsent: list[Node] = field(default_factory=list)
    """Nodes that the target was not told of."""
    steps_unsent: int = 0
    """Steps since it was told anything."""
    answer_owed: bool = True
    """The target was not told yet that growth is complete."""
    _guesses: dict[int, Sequence[Proposed]] = field(default_factory=dict)
    """By node: what else may stand in its place, where that did not begin a side line yet."""
    _line_numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

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
            asked_at=now,
        )

    @property
    def path_log_prob(self) -> float:
        """How probable the chain is, as a whole."""
        return sum(node.log_prob for node in self.chain)

    @property
    def below_window(self) -> bool:
        """Whether its target still lacks tokens for the next round."""
        return len(self.chain) < self.limits.window

    @property
    def num_missing(self) -> int:
        """How many tokens its target lacks for the next round, of those that the chain may get."""
        return max(0, min(self.limits.window - len(self.chain), self.room()))

    def commit(self, base_length: int, token_ids: Sequence[int], limits: Limits | None) -> Walk:
        """Take in what the target decided.

        Raises:
            CommitGap: Tokens are missing before `base_length`.
        """
        start = min(base_length, self.tree.committed_length)
        new = token_ids[self.tree.committed_length - base_length :]
        compared = list(zip(self.chain, new, strict=False))
        self.tree.commit(base_length, token_ids)
        if limits is not None:
            self.limits = limits
        previous = self.chain
        self.chain = self.tree.best_path()
        unchanged = self._replace_tokens(start)
        adopted, dropped = self._follow(previous)
        self.unsent = [node for node in self.unsent if node.id in self.tree]
        if self._guesses:
            self._guesses = {id_: g for id_, g in self._guesses.items() if id_ in self.tree}
            self._begin_sides()
        self.exhausted = False
        self.answer_owed = True
        self.waited = 0
        agreed = all(node.token_id == own for node, own in compared) if compared else None
        return Walk(unchanged, adopted, dropped, agreed)

    def _replace_tokens(self, start: int) -> int:
        """Bring `tokens` up to date from `start` on; returns the length of what did not change."""
        tail = [*self.tree.token_ids[start:], *(node.token_id for node in self.chain)]
        unchanged = start
        for old, new in zip(self.tokens[start:], tail, strict=False):
            if old != new:
                break
            unchanged += 1
        self.tokens[start:] = tail
        return unchanged

    def _follow(self, previous: Sequence[Node]) -> tuple[SessionKey | None, list[SessionKey]]:
        """Sort out the side lines; returns which one is the chain now, and which are no more."""
        if not self.sides:
            return None, []
        adopted: SessionKey | None = None
        if self.chain and self.chain[0].id not in {node.id for node in previous}:
            first = self.chain[0].id
            for side in self.sides:
                if any(node.id == first for node in side.nodes):
                    adopted = side.key
        kept = [side for side in self.sides if side.nodes[0].id in self.tree]
        if adopted is not None:
            kept = []  # it left the chain, and whatever else hangs on that
        dropped = [s.key for s in self.sides if s not in kept and s.key != adopted]
        self.sides = kept
        for side in kept:
            side.waited = 0
            before = len(side.tokens) - len(side.nodes) - self.tree.committed_length
            side.log_prob_before = sum(node.log_prob for node in self.chain[:before])
        return adopted, dropped

    def room(self) -> int:
        """How many more tokens the chain may get before the next commit."""
        if self.exhausted or self._path_ended():
            return 0
        return max(0, min(self.limits.depth - len(self.chain), self._room_behind(self.tokens)))

    def side_room(self, side: SideLine) -> int:
        """How many more tokens a side line may get before the next commit."""
        if side.exhausted or (len(side.nodes) > 1 and self._ends(side.nodes[-1])):
            return 0
        depth = len(side.tokens) - self.tree.committed_length
        return max(
            0,
            min(
                side.most_nodes - len(side.nodes),
                self.limits.depth - depth,
                self._room_behind(side.tokens),
            ),
        )

    def growing_sides(self) -> list[SideLine]:
        """Side lines that may grow."""
        return [side for side in self.sides if self.side_room(side)]

    def drop_sides(self) -> list[SessionKey]:
        """Let go of all side lines; what they proposed stays in the tree."""
        sides, self.sides = self.sides, []
        return [side.key for side in sides]

    @property
    def may_grow(self) -> bool:
        """Whether any line may."""
        return self.room() > 0 or any(self.side_room(side) for side in self.sides)

    def _room_behind(self, tokens: Sequence[int]) -> int:
        return min(
            self.limits.max_nodes - len(self.tree),
            # The target always decides one token more than it verifies.
            self.request.parameters.max_length - 1 - len(tokens),
            self.max_length - len(tokens),
        )

    def extend(self, proposed: Iterable[Proposed], siblings: Sequence[Proposed] = ()) -> int:
        """Add tokens to the chain while it may grow; returns how many nodes were added.

        Args:
            proposed: What follows.
            siblings: Further guesses for the first of these positions.
        """
        added = 0
        for one in proposed:
            if self.room() == 0:
                break
            node = self._add(self.chain[-1].id if self.chain else ROOT, one)
            if siblings and not added:
                self._guesses[node.id] = siblings
            self.chain.append(node)
            self.tokens.append(node.token_id)
            added += 1
        return added + self._begin_sides()

    def extend_side(
        self, side: SideLine, proposed: Iterable[Proposed], siblings: Sequence[Proposed] = ()
    ) -> int:
        """Add tokens to a side line while it may grow, as `extend` does."""
        added = 0
        for one in proposed:
            if self.side_room(side) == 0:
                break
            node = self._add(side.nodes[-1].id, one)
            if siblings and not added:
                self._guesses[node.id] = siblings
            side.nodes.append(node)
            side.tokens.append(node.token_id)
            added += 1
        return added

    def _add(self, parent_id: int, proposed: Proposed) -> Node:
        node = self.tree.add(parent_id, *proposed)
        self.unsent.append(node)
        return node

    def _begin_sides(self) -> int:
        """Begin side lines where the target's next answer may leave the chain; returns how many.

        That is at any token which it will verify in the next round, and at the one behind. Guesses
        for later positions, and for those of side lines, are kept until it comes to them.
        """
        if not self._guesses:
            return 0
        added = 0
        log_prob = 0.0
        for length, node in enumerate(
            self.chain[: self.limits.window + 1], start=self.tree.committed_length
        ):
            for guess in self._guesses.pop(node.id, ()):
                added += self._begin_side(guess, self.tokens[:length], node.parent_id, log_prob)
            log_prob += node.log_prob
        return added

    def _begin_side(
        self, guess: Proposed, tokens: list[int], parent_id: int, log_prob: float
    ) -> bool:
        ends = guess.token_id in self.request.parameters.eos_token_ids  # nothing would follow it
        if ends or self._room_behind(tokens) <= 0:
            return False
        node = self._add(parent_id, guess)
        self.sides.append(
            SideLine(
                self.key._replace(line=next(self._line_numbers)),
                self.request,
                [*tokens, guess.token_id],
                [node],
                log_prob_before=log_prob,
                most_nodes=1 + self.limits.window,
                source=self.key,
                num_shared=len(tokens),
            )
        )
        return True

    def _path_ended(self) -> bool:
        parameters = self.request.parameters
        if not self.chain:
            generated = self.tree.committed_length > self.request.num_prompt_tokens
            return generated and self.tokens[-1] in parameters.eos_token_ids
        return self._ends(self.chain[-1])

    def _ends(self, leaf: Node) -> bool:
        """Whether nothing should follow a token."""
        unsure = math.exp(leaf.log_prob) < self.limits.confidence_threshold
        return unsure or leaf.token_id in self.request.parameters.eos_token_ids
