"""A session's draft tree: proposed continuations, rooted at the last committed token.

Target and drafter each keep a copy and walk it along the committed tokens, so the copies need no
acknowledgement: the subtree below stays valid, the rest is dropped, nothing is ever rolled back.
A chain is a tree without branches. Knows nothing of gRPC, models or scheduling.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from outrider_runtime.sparse_distribution import SparseDistribution

ROOT = 0
"""Parent id of the nodes that follow the last committed token (or the one at a `base_length`)."""

_REMEMBERED_COMMITTED_NODES = 1024


class Limits(NamedTuple):
    """How far a drafter may grow a tree.

    Attributes:
        window: Depth that is wanted for the next round, at least 1.
        depth: Greatest depth of the tree, at least `window`; the excess is run-ahead.
        max_nodes: Most nodes in the tree. The same for the whole session.
        confidence_threshold: A path ends after a token of lower draft probability. 0 is off.
        fan_out: Most proposals for one position of the most probable path, at least 1.
    """

    window: int
    depth: int
    max_nodes: int
    confidence_threshold: float
    fan_out: int = 1


class Node(NamedTuple):
    """A proposed token."""

    id: int
    parent_id: int
    token_id: int
    log_prob: float
    depth: int
    """Distance from the first root of the session: does not change when the root moves."""
    distribution: SparseDistribution | None = None
    """What the token was drawn from, where that matters; None: nothing but itself."""


class Proposal(NamedTuple):
    """A node as it comes over the wire."""

    id: int
    parent_id: int
    token_id: int
    log_prob: float
    distribution: SparseDistribution | None = None


class Growth(NamedTuple):
    """What became of proposals.

    Attributes:
        added: Proposals now in the tree.
        late: Proposals that the committed tokens have already confirmed or overtaken. Harmless.
        offences: Proposals that break the protocol; they were dropped.
    """

    added: int
    late: int
    offences: int


class CommitGap(Exception):
    """A commit starts beyond the tokens held; `held_length` says how many are."""

    def __init__(self, held_length: int) -> None:
        super().__init__(f"only {held_length} committed tokens are held")
        self.held_length = held_length


class DraftTree:
    """The committed tokens of a session and the proposals below them."""

    def __init__(self, token_ids: Iterable[int], *, last_id: int = ROOT) -> None:
        """Start without proposals.

        Args:
            token_ids: Committed tokens, prompt first.
            last_id: Highest id that is taken already: ids stay new when a session is opened again.
        """
        self.token_ids = list(token_ids)
        """Committed tokens, prompt first."""
        self._nodes: dict[int, Node] = {}
        self._children: dict[int, list[int]] = {}
        self._root_depth = 0  # tokens committed by walking: node depths are counted from the start
        self.last_id = last_id
        """Highest node id used so far."""
        self._committed_nodes: dict[int, int] = {}  # id of a committed proposal -> its position
        self._best_path: list[Node] | None = None  # None: something has changed since

    def __len__(self) -> int:
        """Number of nodes below the root."""
        return len(self._nodes)

    def __contains__(self, node_id: int) -> bool:
        """Whether a node is below the root."""
        return node_id in self._nodes

    @property
    def committed_length(self) -> int:
        """Number of committed tokens."""
        return len(self.token_ids)

    def depth(self, node: Node) -> int:
        """Distance of a node from the last committed token, at least 1."""
        return node.depth - self._root_depth

    def children(self, parent_id: int = ROOT) -> list[Node]:
        """Proposals that follow a node, or the last committed token; none below unknown nodes."""
        return [self._nodes[child] for child in self._children.get(parent_id, ())]

    def commit(self, base_length: int, token_ids: Sequence[int]) -> None:
        """Take "positions from `base_length` on are these tokens" as the truth. Idempotent.

        Raises:
            CommitGap: `base_length` lies beyond the committed tokens held.
        """
        if base_length > self.committed_length:
            raise CommitGap(self.committed_length)
        if base_length == self.committed_length and not self._nodes:
            self.token_ids.extend(token_ids)  # nothing to walk along: as most rounds, undrafted
            self._root_depth += len(token_ids)
            return
        known = self.token_ids[base_length : base_length + len(token_ids)]
        if list(token_ids[: len(known)]) != known:
            # The target is the only truth: what was held here belonged to another past.
            del self.token_ids[base_length:]
            self._clear()
            known = []
        for token_id in token_ids[len(known) :]:
            self._walk(token_id)

    def add(
        self,
        parent_id: int,
        token_id: int,
        log_prob: float,
        distribution: SparseDistribution | None = None,
    ) -> Node:
        """Propose a token (the drafter's side). The id is new in the session."""
        self.last_id += 1
        proposal = Proposal(self.last_id, parent_id, token_id, log_prob, distribution)
        return self._insert(proposal, parent_id)

    def grow(
        self, base_length: int, proposals: Iterable[Proposal], *, vocab_size: int, max_nodes: int
    ) -> Growth:
        """Take in a drafter's proposals (the target's side), whatever they contain.

        Args:
            base_length: Committed length that the parent id `ROOT` refers to.
            proposals: Parents before children, ids ascending and never used before.
            vocab_size: Token ids at or above it are offences, as are distributions that hold some
                or cannot have given their token.
            max_nodes: Nodes beyond this are offences. The window and depth of `Limits` are not
                enforced here: they move from round to round, a node granted a round ago must stay,
                or the two copies would part for good.
        """
        added = late = offences = 0
        rejected: set[int] = set()
        committed_length = self.committed_length
        for proposal in proposals:
            fresh = proposal.id > self.last_id
            sound = fresh and proposal.parent_id < proposal.id and proposal.token_id >= 0
            if (
                not sound
                or proposal.token_id >= vocab_size
                or not 0 <= base_length <= committed_length
                or proposal.parent_id in rejected
                or not _is_drawn_rightly(proposal, vocab_size)
            ):
                offences += 1
                if fresh:
                    rejected.add(proposal.id)
                continue
            self.last_id = proposal.id
            position = self._position_below(base_length, proposal.parent_id)
            if position is None:
                late += 1  # the parent was dropped, and its descendants with it
            elif position < committed_length:
                late += 1
                if self.token_ids[position] == proposal.token_id:
                    self._remember(proposal.id, position)
            elif len(self._nodes) >= max_nodes:
                offences += 1
                rejected.add(proposal.id)
            else:
                known = proposal.parent_id in self._nodes
                self._insert(proposal, proposal.parent_id if known else ROOT)
                added += 1
        return Growth(added, late, offences)

    def best_path(self, max_length: int | None = None) -> list[Node]:
        """The most probable continuation, child by child from the root."""
        if self._best_path is None:
            self._best_path = []
            children = self.children()
            while children:
                self._best_path.append(max(children, key=_log_prob))
                children = self.children(self._best_path[-1].id)
        return self._best_path[:max_length]

    def _position_below(self, base_length: int, parent_id: int) -> int | None:
        """Position of a child of `parent_id`; None when that parent was dropped."""
        if parent_id == ROOT:
            return base_length
        if (node := self._nodes.get(parent_id)) is not None:
            return self.committed_length + node.depth - self._root_depth
        if (position := self._committed_nodes.get(parent_id)) is not None:
            return position + 1
        return None

    def _insert(self, proposal: Proposal, parent_id: int) -> Node:
        parent = self._nodes.get(parent_id)
        depth = (parent.depth if parent else self._root_depth) + 1
        node_id, _, token_id, log_prob, distribution = proposal
        node = Node(node_id, parent_id, token_id, log_prob, depth, distribution)
        self._nodes[node_id] = node
        self._best_path = None
        self._children.setdefault(parent_id if parent else ROOT, []).append(node_id)
        return node

    def _walk(self, token_id: int) -> None:
        """Move the root one committed token on."""
        self._best_path = None
        position = self.committed_length
        self.token_ids.append(token_id)
        survivor: int | None = None
        for child in self._children.pop(ROOT, []):
            if survivor is None and self._nodes[child].token_id == token_id:
                survivor = child
            else:
                self._drop_subtree(child)
        self._root_depth += 1
        if survivor is None:
            return
        del self._nodes[survivor]
        self._remember(survivor, position)
        if grandchildren := self._children.pop(survivor, None):
            self._children[ROOT] = grandchildren

    def _drop_subtree(self, node_id: int) -> None:
        pending = [node_id]
        while pending:
            dropped = pending.pop()
            del self._nodes[dropped]
            pending.extend(self._children.pop(dropped, ()))

    def _remember(self, node_id: int, position: int) -> None:
        """Keep a committed node's position: late children of it may still arrive."""
        self._committed_nodes[node_id] = position
        if len(self._committed_nodes) > _REMEMBERED_COMMITTED_NODES:
            self._committed_nodes.pop(next(iter(self._committed_nodes)))

    def _clear(self) -> None:
        self._nodes.clear()
        self._children.clear()
        self._committed_nodes.clear()
        self._best_path = None


def _log_prob(node: Node) -> float:
    return node.log_prob


def _is_drawn_rightly(proposal: Proposal, vocab_size: int) -> bool:
    distribution = proposal.distribution
    return distribution is None or distribution.gave(proposal.token_id, vocab_size=vocab_size)
