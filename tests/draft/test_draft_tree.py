"""Two copies of a tree, target's and drafter's, stay consistent whatever happens to the frames."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule
from outrider_runtime.draft_tree import ROOT, CommitGap, DraftTree, Growth, Node, Proposal
from outrider_runtime.sparse_distribution import SparseDistribution

VOCAB_SIZE = 3
MAX_NODES = 12
PROMPT = (0, 1, 2)

Text = tuple[int, ...]


class GrowFrame(NamedTuple):
    base_length: int
    proposals: tuple[Proposal, ...]


class CommitFrame(NamedTuple):
    base_length: int
    token_ids: tuple[int, ...]


def walk(tree: DraftTree, parent_id: int = ROOT, path: Text = ()) -> Iterator[tuple[Node, Text]]:
    """All nodes below a parent, each with the tokens that lead to it."""
    for node in tree.children(parent_id):
        tokens = (*path, node.token_id)
        yield node, tokens
        yield from walk(tree, node.id, tokens)


def texts(tree: DraftTree) -> set[Text]:
    """Committed text plus path, for every node of the tree."""
    return {(*tree.token_ids, *path) for _, path in walk(tree)}


class Pair:
    """A target and a drafter, each with a copy, and all frames ever sent between them."""

    def __init__(self) -> None:
        self.truth: Text = PROMPT
        self.target = DraftTree(PROMPT)
        self.drafter = DraftTree(PROMPT)
        self.proposed: set[Text] = set()
        self.unsent: list[Node] = []
        self.growth = Growth(0, 0, 0)

    def propose(self, parent: int, token_id: int) -> None:
        nodes = [(ROOT, ()), *((node.id, path) for node, path in walk(self.drafter))]
        parent_id, path = nodes[parent % len(nodes)]
        if len(self.drafter) < MAX_NODES:
            self.unsent.append(self.drafter.add(parent_id, token_id, -1.0))
            self.proposed.add((*self.drafter.token_ids, *path, token_id))

    def grow_frame(self) -> GrowFrame:
        held = {node.id for node, _ in walk(self.drafter)}
        proposals = tuple(
            Proposal(
                node.id,
                node.parent_id if node.parent_id in held else ROOT,
                node.token_id,
                node.log_prob,
            )
            for node in self.unsent
            if node.id in held
        )
        self.unsent.clear()
        return GrowFrame(self.drafter.committed_length, proposals)

    def take_grow(self, frame: GrowFrame) -> Growth:
        growth = self.target.grow(
            frame.base_length, frame.proposals, vocab_size=VOCAB_SIZE, max_nodes=MAX_NODES
        )
        self.growth = Growth(*(a + b for a, b in zip(self.growth, growth, strict=True)))
        return growth

    def decide(self, accepted: int, own: int, repeated: int) -> CommitFrame:
        """The target accepts some of the best path and adds a token of its own."""
        path = [node.token_id for node in self.target.best_path(accepted)]
        self.truth = (*self.truth, *path, own)
        self.target.commit(self.target.committed_length, [*path, own])
        base = max(1, len(self.truth) - len(path) - 1 - repeated)
        return CommitFrame(base, self.truth[base:])

    def take_commit(self, frame: CommitFrame) -> CommitFrame | None:
        """Returns what the target sends where something was missing."""
        try:
            self.drafter.commit(frame.base_length, frame.token_ids)
        except CommitGap as gap:
            return CommitFrame(gap.held_length, self.truth[gap.held_length :])
        return None


class LossyLink(RuleBasedStateMachine):
    """Frames are delayed, reordered, duplicated and lost at will."""

    grows: Bundle[GrowFrame] = Bundle("grows")
    commits: Bundle[CommitFrame] = Bundle("commits")

    def __init__(self) -> None:
        super().__init__()
        self.pair = Pair()

    @rule(parent=st.integers(0, MAX_NODES), token_id=st.integers(0, VOCAB_SIZE - 1))
    def propose(self, parent: int, token_id: int) -> None:
        self.pair.propose(parent, token_id)

    @rule(target=grows)
    def send_growth(self) -> GrowFrame:
        return self.pair.grow_frame()

    @rule(frame=grows)
    def deliver_growth(self, frame: GrowFrame) -> None:
        self.pair.take_grow(frame)

    @rule(
        target=commits,
        accepted=st.integers(0, 4),
        own=st.integers(0, VOCAB_SIZE - 1),
        repeated=st.integers(0, 3),
    )
    def decide(self, accepted: int, own: int, repeated: int) -> CommitFrame:
        return self.pair.decide(accepted, own, repeated)

    @rule(frame=commits)
    def deliver_commit(self, frame: CommitFrame) -> None:
        missing = self.pair.take_commit(frame)
        if missing is not None:
            assert self.pair.take_commit(missing) is None

    @invariant()
    def the_target_alone_decides(self) -> None:
        assert tuple(self.pair.target.token_ids) == self.pair.truth
        held = self.pair.drafter.token_ids
        assert tuple(held) == self.pair.truth[: len(held)]

    @invariant()
    def every_path_of_the_target_was_proposed_from_the_committed_text(self) -> None:
        assert texts(self.pair.target) <= self.pair.proposed

    @invariant()
    def the_target_counts_its_nodes(self) -> None:
        nodes = list(walk(self.pair.target))
        assert len(nodes) == len(self.pair.target) <= MAX_NODES
        assert all(self.pair.target.depth(node) == len(path) for node, path in nodes)


LossyLink.TestCase.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
TestLossyLink = LossyLink.TestCase


steps = st.lists(
    st.one_of(
        st.tuples(st.just("propose"), st.integers(0, MAX_NODES), st.integers(0, VOCAB_SIZE - 1)),
        st.tuples(st.just("decide"), st.integers(0, 4), st.integers(0, VOCAB_SIZE - 1)),
        st.tuples(st.sampled_from(["send", "hear", "listen"]), st.just(0), st.just(0)),
    ),
    max_size=60,
)


@settings(max_examples=150, deadline=None)
@given(steps)
def test_a_link_that_only_delays_leaves_both_copies_equal_in_the_end(
    script: list[tuple[str, int, int]],
) -> None:
    pair = Pair()
    grows: list[GrowFrame] = []
    commits: list[CommitFrame] = []
    for verb, number, token_id in script:
        if verb == "propose":
            # Siblings of an honest drafter differ.
            taken = texts(pair.drafter)
            nodes = [(), *(path for _, path in walk(pair.drafter))]
            if (
                *pair.drafter.token_ids,
                *nodes[number % len(nodes)],
                token_id,
            ) not in taken:
                pair.propose(number, token_id)
        elif verb == "decide":
            commits.append(pair.decide(number, token_id, 0))
        elif verb == "send":
            grows.append(pair.grow_frame())
        elif verb == "hear" and grows:
            pair.take_grow(grows.pop(0))
        elif verb == "listen" and commits:
            assert pair.take_commit(commits.pop(0)) is None
    for commit in commits:
        assert pair.take_commit(commit) is None
    for grow in [*grows, pair.grow_frame()]:
        pair.take_grow(grow)
    assert pair.drafter.token_ids == pair.target.token_ids
    assert texts(pair.target) == texts(pair.drafter)
    assert len(pair.target) == len(pair.drafter)
    assert pair.growth.offences == 0


anything = st.integers(-(2**70), 2**70) | st.integers(-3, 30)
log_probs = st.floats() | st.sampled_from([math.nan, math.inf, -math.inf])
proposals = st.builds(Proposal, anything, anything, anything, log_probs)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(anything, st.lists(proposals, max_size=20)), max_size=6),
    st.lists(st.integers(0, VOCAB_SIZE - 1), max_size=6),
)
def test_garbage_never_raises_and_never_leaves_the_limits(
    frames: list[tuple[int, list[Proposal]]], decided: list[int]
) -> None:
    tree = DraftTree(PROMPT)
    for base_length, garbage in frames:
        growth = tree.grow(base_length, garbage, vocab_size=VOCAB_SIZE, max_nodes=MAX_NODES)
        assert growth.added + growth.late + growth.offences == len(garbage)
        assert len(tree) <= MAX_NODES
        assert all(0 <= node.token_id < VOCAB_SIZE for node, _ in walk(tree))
        assert len(tree.best_path()) <= len(tree)
        tree.commit(tree.committed_length, decided)
    assert tree.token_ids == [*PROMPT, *decided * len(frames)]


def grow(
    tree: DraftTree, *proposals: tuple[int, int, int], base_length: int | None = None
) -> Growth:
    return tree.grow(
        tree.committed_length if base_length is None else base_length,
        [Proposal(*proposal, -1.0) for proposal in proposals],
        vocab_size=VOCAB_SIZE,
        max_nodes=MAX_NODES,
    )


def test_an_id_that_comes_again_is_an_offence() -> None:
    tree = DraftTree(PROMPT)
    assert grow(tree, (1, ROOT, 0), (2, 1, 0), (2, 1, 1)) == Growth(2, 0, 1)
    tree.commit(3, [2])  # leaves the tree, which is empty now; its ids stay taken
    assert grow(tree, (1, ROOT, 0), (3, ROOT, 0)) == Growth(1, 0, 1)


def test_children_of_unknown_parents_are_late_not_added() -> None:
    tree = DraftTree(PROMPT)
    assert grow(tree, (5, 4, 0), (6, 5, 0)) == Growth(0, 2, 0)
    assert len(tree) == 0


def test_a_node_below_itself_or_a_later_one_is_an_offence() -> None:
    assert grow(DraftTree(PROMPT), (1, 1, 0), (2, 7, 0)) == Growth(0, 0, 2)


def test_what_exceeds_the_granted_nodes_is_an_offence() -> None:
    tree = DraftTree(PROMPT)
    flood = [(i, i - 1, 0) for i in range(1, MAX_NODES + 8)]
    assert grow(tree, *flood) == Growth(MAX_NODES, 0, 7)


BROKEN_DISTRIBUTIONS = {
    "no token": ((), ()),
    "not the token drawn": ((1, 2), (3, 4)),
    "a token twice": ((0, 0), (1, 1)),
    "no weight": ((0, 1), (0, 1)),
    "too much weight": ((0, 1), (1, 2**16)),
    "weights missing": ((0, 1), (1,)),
    "outside the vocabulary": ((0, VOCAB_SIZE), (1, 1)),
    "negative": ((0, -1), (1, 1)),
    "too many": (tuple(range(65)), (1,) * 65),
}


@pytest.mark.parametrize("why", BROKEN_DISTRIBUTIONS)
def test_a_token_that_was_not_drawn_from_what_is_told_is_an_offence(why: str) -> None:
    broken = SparseDistribution(*BROKEN_DISTRIBUTIONS[why])
    sound = SparseDistribution((1, 0), (1, 2**16 - 1))
    tree = DraftTree(PROMPT)
    proposals = [
        Proposal(1, ROOT, 0, -1.0, sound),
        Proposal(2, 1, 0, -1.0, broken),
        Proposal(3, 2, 1, -1.0, sound),
    ]
    vocab_size = 100 if why == "too many" else VOCAB_SIZE
    growth = tree.grow(3, proposals, vocab_size=vocab_size, max_nodes=MAX_NODES)
    assert growth == Growth(1, 0, 2), "what hangs on it goes with it"
    assert [node.distribution for node in tree.best_path()] == [sound]


def test_growth_from_a_future_the_target_does_not_know_is_an_offence() -> None:
    assert grow(DraftTree(PROMPT), (1, ROOT, 0), base_length=4) == Growth(0, 0, 1)


def test_growth_that_was_overtaken_goes_on_where_it_agrees() -> None:
    tree = DraftTree(PROMPT)
    tree.commit(3, [1, 2])
    assert grow(tree, (1, ROOT, 1), (2, 1, 2), (3, 2, 0), base_length=3) == Growth(1, 2, 0)
    assert [node.token_id for node in tree.best_path()] == [0]


def test_growth_that_was_contradicted_is_dropped_with_all_that_follows() -> None:
    tree = DraftTree(PROMPT)
    tree.commit(3, [1, 2])
    assert grow(tree, (1, ROOT, 1), (2, 1, 0), (3, 2, 0), base_length=3) == Growth(0, 3, 0)
    assert len(tree) == 0


def test_the_subtree_below_the_committed_tokens_survives() -> None:
    tree = DraftTree(PROMPT)
    grow(tree, (1, ROOT, 0), (2, ROOT, 1), (3, 1, 2), (4, 2, 2), (5, 4, 0))
    tree.commit(3, [1, 2])
    assert texts(tree) == {(*PROMPT, 1, 2, 0)}
    assert [tree.depth(node) for node in tree.best_path()] == [1]


def test_a_commit_that_contradicts_what_was_committed_is_the_truth() -> None:
    tree = DraftTree(PROMPT)
    grow(tree, (1, ROOT, 0))
    tree.commit(2, [0, 1])
    assert tree.token_ids == [0, 1, 0, 1]
    assert len(tree) == 0


def test_ids_go_on_where_a_replaced_session_stopped() -> None:
    old = DraftTree(PROMPT)
    old.add(ROOT, 0, -1.0)
    assert DraftTree(PROMPT, last_id=old.last_id).add(ROOT, 0, -1.0).id == 2
