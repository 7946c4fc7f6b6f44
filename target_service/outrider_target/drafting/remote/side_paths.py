"""Which paths beside a draft are worth verifying with it. Pure.

A draft follows the most probable path of its tree; where the target says another token, it may be
one that the drafter guessed as well. Such a path costs a row for each of its tokens and one for the
last committed token, and is worth the probability that the target goes along it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from outrider_runtime.draft_tree import ROOT, DraftTree, Node


def best_side_paths(tree: DraftTree, *, window: int, rows: int) -> list[list[int]]:
    """The paths that bring most tokens a row, most first, within a budget of rows.

    Args:
        tree: What was proposed.
        window: Longest path, in tokens.
        rows: Rows that all of them may take together.

    Returns:
        Token ids from the first draft token on. Each leaves the most probable path at a node of
        its own, and then follows what is most probable behind that.
    """
    candidates = sorted(_candidates(tree, window), key=_worth_per_row, reverse=True)
    chosen: list[list[int]] = []
    for path in candidates:
        if len(path) + 1 <= rows:
            rows -= len(path) + 1
            chosen.append([node.token_id for node in path])
    return chosen


def _candidates(tree: DraftTree, window: int) -> Iterator[list[Node]]:
    """For each node beside the most probable path, the way to it and on from it."""
    path = tree.best_path(window)
    for depth, node in enumerate(path):
        parent = path[depth - 1].id if depth else ROOT
        for sibling in tree.children(parent):
            if sibling.id == node.id:
                continue
            on = [sibling]
            while len(on) + depth < window and (children := tree.children(on[-1].id)):
                on.append(max(children, key=lambda child: child.log_prob))
            yield [*path[:depth], *on]


def _worth_per_row(path: list[Node]) -> float:
    """Expected accepted tokens a row, by the drafter's own probabilities."""
    log_prob = worth = 0.0
    for node in path:
        log_prob += min(0.0, node.log_prob)
        worth += math.exp(log_prob)
    return worth / (len(path) + 1)
