"""The suffix tree counts what a search through the texts counts, whatever came and went."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from outrider_runtime.suffix_tree import SuffixTree

DEPTH = 5
few_tokens = st.integers(0, 2)
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


@settings(max_examples=150, deadline=None)
@given(texts_of_few, st.integers(2 * DEPTH, 60), st.integers(2, 3))
def test_counts_and_matches_are_those_of_a_search(
    texts: list[list[int]], max_tokens: int, alphabet: int
) -> None:
    tree, oracle = SuffixTree(max_tokens=max_tokens, max_depth=DEPTH), Texts(max_tokens)
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


@settings(max_examples=150, deadline=None)
@given(texts_of_few, st.lists(few_tokens, min_size=1, max_size=DEPTH), st.integers(1, 9))
def test_probabilities_come_from_counts_and_the_most_frequent_token_is_proposed(
    texts: list[list[int]], context: list[int], num_tokens: int
) -> None:
    tree = SuffixTree(max_tokens=200, max_depth=DEPTH)
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


def test_a_repetition_goes_on_with_itself() -> None:
    tree = SuffixTree(max_tokens=1000)
    tree.extend([7, 8, 9] * 3)
    found = tree.speculate([7, 8, 9] * 3, 10, match_size=tree.open_match)
    assert list(found.token_ids) == [7, 8, 9, 7, 8, 9, 7, 8, 9, 7]


def test_a_long_known_text_is_continued_beyond_the_depth() -> None:
    tree = SuffixTree(max_tokens=1000, max_depth=8)
    tree.extend(range(100))
    tree.close()
    assert list(tree.speculate(range(20), 12).token_ids) == list(range(20, 32))


def test_of_equally_frequent_continuations_the_newest_is_taken() -> None:
    tree = SuffixTree(max_tokens=1000)
    for last in (5, 6, 4):
        tree.extend([1, 2, 3, last])
        tree.close()
    assert tree.speculate([1, 2, 3], 1).token_ids == [4]


def test_what_is_forgotten_is_not_proposed_and_leaves_no_node() -> None:
    tree = SuffixTree(max_tokens=64, max_depth=8)
    tree.extend(range(1000, 1032))
    for start in range(0, 64, 8):
        tree.extend([start] * 8)
        tree.close()
    assert not tree.speculate(range(1000, 1008), 4).token_ids
    assert len(tree) == 64
    assert tree.num_nodes <= 2 * 64


def test_a_tree_that_cannot_hold_its_depth_is_refused() -> None:
    with pytest.raises(ValueError, match="depth"):
        SuffixTree(max_tokens=10, max_depth=8)
