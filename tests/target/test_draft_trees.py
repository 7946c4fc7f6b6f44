"""Drafts with several paths: verified in one forward, whatever they say, they change nothing."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import pytest
from engine.tiny_models import VOCAB_SIZE
from outrider_runtime.draft_tree import DraftTree
from outrider_runtime.model.ragged_runner import RaggedRunner
from outrider_target.decoding.acceptance import accept_furthest
from outrider_target.drafting.drafter import Draft, DraftSession
from outrider_target.drafting.remote.side_paths import best_side_paths
from outrider_target.requests.request import DraftMethod, GenerationRequest
from target.batch import Answer, Batch, request
from target.drafters import ScriptedSession
from target.test_rounds import some_requests

NewRunner = Callable[..., RaggedRunner]
Truth = dict[tuple[str, int], list[int]]


class TreeDrafter:
    """Knows the whole text; its draft may leave it, its other paths may not, or anywhere.

    Args:
        truth: For (request id, sample index) the whole sequence, prompt included.
        chance: Decides where paths leave it.
        draft_is_wrong: The draft says something else from its first token on.
        others: Whether there are other paths.
    """

    def __init__(
        self, truth: Truth, chance: random.Random, *, draft_is_wrong: bool, others: bool = True
    ) -> None:
        self._truth = truth
        self._chance = chance
        self._draft_is_wrong = draft_is_wrong
        self._others = others
        self.num_others = 0

    def open(
        self,
        request: GenerationRequest,
        *,
        sample_index: int,
        token_ids: Sequence[int],
        window: int,
    ) -> DraftSession:
        return TreeSession(self, request, sample_index, token_ids)

    def draft(self, known: list[int], window: int) -> Draft:
        """A draft of a text that goes on like this."""
        first = 0 if self._draft_is_wrong else self._chance.randint(0, window)
        token_ids = self._leaving(known, first, window)
        others = []
        if self._others:
            others = [self._leaving(known, window, window)]
            for _ in range(self._chance.randint(0, 3)):
                length = self._chance.randint(1, window)
                others.append(self._leaving(known, self._chance.randint(0, length), length))
            self._chance.shuffle(others)
        others = [path for path in others if path]
        self.num_others += len(others)
        return Draft(token_ids, DraftMethod.REMOTE, others=others)

    def _leaving(self, known: list[int], at: int, length: int) -> list[int]:
        path = list(known[:length])
        for i in range(at, len(path)):
            path[i] = (path[i] + self._chance.randrange(1, VOCAB_SIZE)) % VOCAB_SIZE
        return path


class TreeSession(ScriptedSession):
    def __init__(
        self,
        drafter: TreeDrafter,
        request: GenerationRequest,
        index: int,
        token_ids: Sequence[int],
    ) -> None:
        super().__init__(lambda *_: [], request, index, token_ids)
        self._drafter = drafter

    def proposal(self, window: int) -> Draft:
        whole = self._drafter._truth.get((self._request.id, self._index), [])
        return self._drafter.draft(whole[len(self.token_ids) :], window)


def truth_of(requests: Sequence[GenerationRequest], answers: Sequence[Answer]) -> Truth:
    return {
        (generation.id, index): [*generation.prompt, *token_ids]
        for generation, answer in zip(requests, answers, strict=True)
        for index, token_ids in enumerate(answer.token_ids)
    }


def texts(answers: Sequence[Answer]) -> list[tuple[object, object]]:
    return [(answer.token_ids, answer.finishes) for answer in answers]


def accepted(answers: Sequence[Answer]) -> int:
    return sum(answer.counters.num_accepted_tokens for answer in answers if answer.counters)


@pytest.mark.parametrize("num_blocks", [256, 40])
@pytest.mark.parametrize("seed", range(3))
def test_trees_of_any_shape_change_nothing(
    new_runner: NewRunner, seed: int, num_blocks: int
) -> None:
    """Greedy and sampled, with processors that look at each path's own prefix; with preemption."""
    requests = some_requests(seed, 8)
    plain = Batch(new_runner()).run(*requests)
    drafter = TreeDrafter(
        truth_of(requests, plain), random.Random(seed), draft_is_wrong=bool(seed % 2)
    )
    drafted = Batch(new_runner(num_blocks=num_blocks), drafter).run(*requests)
    assert texts(drafted) == texts(plain)
    assert drafter.num_others > 0
    assert accepted(drafted) > 0


def test_what_agrees_along_a_side_path_is_accepted(new_runner: NewRunner) -> None:
    """The draft is always wrong: everything that is accepted came along another path."""
    requests = [request([5, 6, 7 + i], new_tokens=24, seed=i, do_sample=True) for i in range(3)]
    plain = Batch(new_runner()).run(*requests)
    truth = truth_of(requests, plain)
    rounds: dict[bool, int] = {}
    for others in (False, True):
        drafter = TreeDrafter(truth, random.Random(0), draft_is_wrong=True, others=others)
        batch = Batch(new_runner(), drafter)
        drafted = batch.run(*requests)
        assert texts(drafted) == texts(plain)
        assert (accepted(drafted) > 0) == others
        rounds[others] = batch.num_rounds
        for answer in drafted:
            assert answer.counters is not None
            assert answer.counters.num_accepted_tokens <= answer.counters.num_draft_tokens
    assert rounds[True] < rounds[False] / 3


def test_requests_that_are_told_more_than_tokens_verify_the_draft_alone(
    new_runner: NewRunner,
) -> None:
    generation = request([5, 6, 7], new_tokens=16, num_top_log_probs=2)
    plain = Batch(new_runner()).run(generation)
    drafter = TreeDrafter(truth_of([generation], plain), random.Random(0), draft_is_wrong=True)
    drafted = Batch(new_runner(), drafter).run(generation)
    assert texts(drafted) == texts(plain)
    assert drafter.num_others > 0
    assert accepted(drafted) == 0


def test_the_path_that_agrees_furthest_decides() -> None:
    own = [1, 2, 9]  # behind the committed token, behind 1, behind 5
    others = [[1, 2, 3], [1, 2], [7]]
    behind = [[2, 3, 4], [2, 3], [0]]
    found = accept_furthest([1, 5], own, others, behind)
    assert found == ([1, 2, 3, 4], 3)
    assert accept_furthest([1, 5], own, (), ()) == ([1, 2], 1)


def test_side_paths_are_chosen_by_what_they_bring_for_a_row() -> None:
    tree = DraftTree([0])
    first = tree.add(0, 10, -0.1)
    second = tree.add(first.id, 11, -0.1)
    tree.add(second.id, 12, -0.1)
    beside_first = tree.add(0, 20, -2.5)
    after = tree.add(beside_first.id, 21, -0.1)
    tree.add(after.id, 22, -0.1)
    tree.add(first.id, 30, -0.5)
    assert best_side_paths(tree, window=3, rows=64) == [[10, 30], [20, 21, 22]]
    assert best_side_paths(tree, window=3, rows=4) == [[10, 30]]
    assert best_side_paths(tree, window=2, rows=6) == [[10, 30], [20, 21]]
    assert best_side_paths(tree, window=3, rows=0) == []
    assert best_side_paths(DraftTree([0]), window=3, rows=64) == []
