"""The suffix tree counts what a search through the texts counts, whatever came and went.

Both trees: the compiled one, and that in Python which stands in for it.
"""

from __future__ import annotations

import itertools
import os
import random
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
from engine.compiler import needs_compiler
from hypothesis import given, settings
from hypothesis import strategies as st
from outrider_runtime.suffix_tree import native
from outrider_runtime.suffix_tree.in_python import PythonSuffixTree
from outrider_runtime.suffix_tree.native import NativeSuffixTree

DEPTH = 5
LOADING = """
import pathlib, sys
from outrider_runtime import suffix_tree
suffix_tree.native.AHEAD = pathlib.Path(sys.argv[1])
print(suffix_tree.prepare().__name__)
"""
few_tokens = st.integers(0, 2)
both_trees = pytest.mark.parametrize(
    "tree_type",
    [PythonSuffixTree, pytest.param(NativeSuffixTree, marks=needs_compiler)],
    ids=["python", "native"],
)
TreeType = type[PythonSuffixTree] | type[NativeSuffixTree]
texts_of_few = st.lists(st.lists(few_tokens, min_size=1, max_size=25), min_size=1, max_size=6)


class Texts:
    """The same texts, searched from end to end."""

    def __init__(self, max_tokens: int) -> None:
        self.max_tokens = max_tokens
        self.texts: list[list[int]] = [[]]
        self.first = 0  # suffix of the oldest text that is held
        self.settled = 0  # suffixes of the newest that are counted

    def starts(self) -> list[tuple[list[int], int]]:
        found = []
        for number, text in enumerate(self.texts):
            begin = self.first if number == 0 else 0
            end = self.settled if number == len(self.texts) - 1 else len(text)
            found += [(text, start) for start in range(begin, end)]
        return found

    def count(self, token_ids: list[int]) -> int:
        return sum(text[i : i + len(token_ids)] == token_ids for text, i in self.starts())

    def append(self, token_id: int) -> None:
        self.texts[-1].append(token_id)
        self._settle()
        while len(self.starts()) > self.max_tokens:
            self._evict()
            self._settle()
        if 2 * len(self.texts[-1]) >= self.max_tokens:
            self.close()

    def close(self) -> None:
        self.settled = len(self.texts[-1])
        while len(self.starts()) > self.max_tokens:
            self._evict()
        if self.texts[-1]:
            self.texts.append([])
        self.settled = 0

    def _settle(self) -> None:
        text = self.texts[-1]
        while self.settled < len(text):
            suffix = text[self.settled :]
            if len(suffix) < DEPTH and self.count(suffix):
                return
            self.settled += 1

    def _evict(self) -> None:
        self.first += 1
        if self.first == len(self.texts[0]):
            del self.texts[0]
            self.first = 0


@both_trees
@settings(max_examples=150, deadline=None)
@given(texts_of_few, st.integers(2 * DEPTH, 60), st.integers(2, 3))
def test_counts_and_matches_are_those_of_a_search(
    tree_type: TreeType, texts: list[list[int]], max_tokens: int, alphabet: int
) -> None:
    tree, oracle = tree_type(max_tokens=max_tokens, max_depth=DEPTH), Texts(max_tokens)
    for text in texts:
        for token_id in text:
            tree.extend([token_id % alphabet])
            oracle.append(token_id % alphabet)
            assert tree.open_match == len(oracle.texts[-1]) - oracle.settled
            assert len(tree) == len(oracle.starts()) <= max_tokens
            assert tree.num_nodes <= 2 * len(tree)
        tree.close()
        oracle.close()
        for size in range(1, DEPTH + 1):
            for word in itertools.product(range(alphabet), repeat=size):
                assert tree.count(word) == oracle.count(list(word)), word
        context = text[-DEPTH:]
        held = [size for size in range(DEPTH) if size <= len(context)]
        longest = max(size for size in held if not size or oracle.count(context[-size:]))
        assert tree.longest_match(context) == longest


@both_trees
@settings(max_examples=150, deadline=None)
@given(texts_of_few, st.lists(few_tokens, min_size=1, max_size=DEPTH), st.integers(1, 9))
def test_probabilities_come_from_counts_and_the_most_frequent_token_is_proposed(
    tree_type: TreeType, texts: list[list[int]], context: list[int], num_tokens: int
) -> None:
    tree = tree_type(max_tokens=200, max_depth=DEPTH)
    for text in texts:
        tree.extend(text)
        tree.close()
    found = tree.speculate(context, num_tokens)
    assert len(found.token_ids) == len(found.probabilities) <= num_tokens
    probable, score, in_one_go = 1.0, 0.0, True
    before = context[len(context) - found.match_size :]
    for token_id, probability in zip(found.token_ids, found.probabilities, strict=True):
        counts = [tree.count([*before, other]) for other in range(3)]
        in_one_go &= len(before) < DEPTH and max(counts) > 0  # else it was looked up anew
        if in_one_go:
            assert tree.count([*before, token_id]) == max(counts)
            share = max(counts) / tree.count(before)
            assert probability == pytest.approx(share * len(before) / (len(before) + 2))
        else:
            assert 0 < probability < 1
        before = [*before, token_id]
        probable *= probability
        score += probable
    assert found.score == pytest.approx(score)
    if tree.longest_match(context) == 0:
        assert not found.token_ids


@both_trees
def test_a_repetition_goes_on_with_itself(tree_type: TreeType) -> None:
    tree = tree_type(max_tokens=1000)
    tree.extend([7, 8, 9] * 3)
    found = tree.speculate([7, 8, 9] * 3, 10, match_size=tree.open_match)
    assert list(found.token_ids) == [7, 8, 9, 7, 8, 9, 7, 8, 9, 7]


@both_trees
def test_a_long_known_text_is_continued_beyond_the_depth(tree_type: TreeType) -> None:
    tree = tree_type(max_tokens=1000, max_depth=8)
    tree.extend(range(100))
    tree.close()
    assert list(tree.speculate(range(20), 12).token_ids) == list(range(20, 32))


@both_trees
def test_of_equally_frequent_continuations_the_newest_is_taken(tree_type: TreeType) -> None:
    tree = tree_type(max_tokens=1000)
    for last in (5, 6, 4):
        tree.extend([1, 2, 3, last])
        tree.close()
    assert tree.speculate([1, 2, 3], 1).token_ids == [4]


@both_trees
def test_what_is_forgotten_is_not_proposed_and_leaves_no_node(tree_type: TreeType) -> None:
    tree = tree_type(max_tokens=64, max_depth=8)
    tree.extend(range(1000, 1032))
    for start in range(0, 64, 8):
        tree.extend([start] * 8)
        tree.close()
    assert not tree.speculate(range(1000, 1008), 4).token_ids
    assert len(tree) == 64
    assert tree.num_nodes <= 2 * 64


@both_trees
def test_a_tree_that_cannot_hold_its_depth_is_refused(tree_type: TreeType) -> None:
    with pytest.raises(ValueError, match="depth"):
        tree_type(max_tokens=10, max_depth=8)


@needs_compiler
@pytest.mark.parametrize("num_kinds", [2, 7, 40, 5000])
def test_the_compiled_tree_says_to_the_bit_what_the_other_says(num_kinds: int) -> None:
    """Over more texts than fit, many of them alike, until nodes have many children."""
    chance = random.Random(num_kinds)
    trees = [
        tree_type(max_tokens=700, max_depth=12)
        for tree_type in (PythonSuffixTree, NativeSuffixTree)
    ]
    said: list[list[int]] = []
    num_found = 0
    for _ in range(300):
        text = [chance.randrange(num_kinds) for _ in range(chance.randrange(1, 40))]
        if said and chance.random() < 0.6:
            copied = chance.choice(said[-20:])
            text[chance.randrange(len(text)) :] = copied[chance.randrange(len(copied)) :]
        said.append(text)
        for start in range(0, len(text), 3):
            context = text[:start][-12:]
            found = []
            for tree in trees:
                tree.extend(text[start : start + 3])
                sizes = len(tree), tree.num_nodes, tree.open_match
                sure = tree.speculate(
                    (context + text[start : start + 3])[-12:], 6, match_size=tree.open_match
                )
                found.append((sizes, tree.longest_match(context), tree.speculate(context, 9), sure))
            assert found[0] == found[1]
            num_found += bool(found[0][2].token_ids)
        if chance.random() < 0.8:
            for tree in trees:
                tree.close()
    assert num_found > 100


@needs_compiler
def test_a_tree_is_freed_with_its_python_object() -> None:
    resident = []
    for _ in range(4):
        for _ in range(40):
            tree = NativeSuffixTree(max_tokens=50_000)
            tree.extend(range(20_000))
        with Path("/proc/self/statm").open() as file:
            resident.append(int(file.read().split()[1]) * 4 / 1024)
    assert resident[-1] - resident[0] < 20, resident  # MiB; a tree of these takes several


@needs_compiler
def test_a_library_compiled_ahead_needs_no_compiler(tmp_path: Path) -> None:
    folder = tmp_path / "built"
    with mock.patch.object(native, "AHEAD", folder):
        assert native.compile_ahead() == native.place_ahead()
    assert len(list(folder.iterdir())) == 1
    for where, expected in [(folder, "NativeSuffixTree"), (tmp_path, "PythonSuffixTree")]:
        run = subprocess.run(
            [sys.executable, "-c", LOADING, str(where)],
            env={**os.environ, "PATH": "/nonexistent", "HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        assert run.stdout.splitlines()[-1] == expected
