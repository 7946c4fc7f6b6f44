"""Sequences of several branches: fed, forked, rolled back, preempted, faulted, cancelled."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from engine.tiny_models import VOCAB_SIZE, build_tiny
from outrider_runtime.model.ragged_runner import RaggedRunner
from outrider_target.decoding.branch import Branch, share_prefixes
from outrider_target.requests.request import GenerationRequest
from target.batch import Answer, Batch, request
from target.branching import Contrast, Herd, contrast_by_hand, herd_by_hand
from target.drafters import sometimes_right
from transformers import PreTrainedModel

NewRunner = Callable[..., RaggedRunner]

PROMPT = [3 + i * 7 % 90 for i in range(21)]
AGAINST = [5, 9, 13]
LENGTH = 37
WIDTH = 5


class Expected:
    """What each kind of request says when it is alone, or computed by hand."""

    def __init__(self, new_runner: NewRunner) -> None:
        model: PreTrainedModel = build_tiny("llama").to(torch.float64)
        self.contrast = contrast_by_hand(model, PROMPT, AGAINST, LENGTH)
        self.herd = herd_by_hand(model, PROMPT, WIDTH, LENGTH)
        self.company = [
            request(PROMPT[:9], new_tokens=30, seed=4, do_sample=True, num_sequences=2),
            request(PROMPT, new_tokens=12),
        ]
        self.answers = [Batch(new_runner()).run(one)[0].token_ids for one in self.company]


@pytest.fixture(scope="module")
def expected(new_runner: NewRunner) -> Expected:
    return Expected(new_runner)


def contrast() -> Contrast:
    return Contrast(PROMPT, AGAINST, LENGTH)


def herd() -> Herd:
    return Herd(PROMPT, WIDTH, LENGTH)


def branching_request() -> GenerationRequest:
    return request(PROMPT, new_tokens=LENGTH - len(PROMPT))


def run_all(batch: Batch, expected: Expected) -> list[Answer]:
    """Both kinds of branching sequences among ordinary ones; everybody says what they should."""
    states = [batch.submit(one) for one in expected.company]
    states.append(batch.submit(branching_request(), strategy=contrast()))
    states.append(batch.submit(branching_request(), strategy=herd()))
    batch.finish()
    answers = [batch.answers[state] for state in states]
    assert [answer.error for answer in answers] == [None] * 4
    assert [answer.token_ids for answer in answers] == [
        *expected.answers,
        [expected.contrast],
        [expected.herd],
    ]
    return answers


@pytest.mark.parametrize(
    ("budget", "num_blocks", "preempted"),
    [(512, 256, False), (1, 256, False), (7, 256, False), (512, 38, True), (9, 38, True)],
)
def test_branches_are_fed_forked_and_dropped_whatever_the_circumstances(
    new_runner: NewRunner, expected: Expected, budget: int, num_blocks: int, preempted: bool
) -> None:
    batch = Batch(new_runner(num_blocks=num_blocks), max_batched_tokens=budget)
    answers = run_all(batch, expected)
    assert (batch.scheduler.num_preemptions > 0) == preempted
    if preempted:
        assert answers[3].num_preemptions > 0, "the one with many branches was fed again"


@pytest.mark.parametrize("probability", [1.0, 0.6, 0.0])
def test_a_draft_is_verified_and_rolled_back_on_all_branches(
    new_runner: NewRunner, expected: Expected, probability: float
) -> None:
    generation = branching_request()
    drafter = sometimes_right(
        {(generation.id, 0): [*PROMPT, *expected.contrast]},
        probability=probability,
        vocab_size=VOCAB_SIZE,
        seed=3,
    )
    batch = Batch(new_runner(), drafter)
    state = batch.submit(generation, strategy=contrast())
    batch.finish()
    assert batch.answers[state].token_ids == [expected.contrast]
    totals = batch.rounds.totals
    assert totals.num_draft_tokens >= 10
    if probability == 1.0:
        assert totals.num_accepted_tokens == totals.num_draft_tokens
    elif probability == 0.6:
        assert 0 < totals.num_accepted_tokens < totals.num_draft_tokens


def test_branches_of_one_prompt_share_its_blocks_also_after_a_preemption(
    new_runner: NewRunner, expected: Expected
) -> None:
    runner = new_runner()
    batch = Batch(runner)
    state = batch.submit(branching_request(), strategy=herd())
    used: list[int] = []
    for turn in range(400):
        if turn == 15:
            batch.scheduler._preempt(state.sequences[0])
            assert runner.pool.num_free_blocks == runner.pool.num_blocks
        batch.rounds.step()
        used.append(runner.pool.num_blocks - runner.pool.num_free_blocks)
        if state.finished:
            break
    assert batch.answers[state].token_ids == [expected.herd]
    assert batch.answers[state].num_preemptions == 1
    of_prompt, of_output = len(PROMPT) // 4, -(-LENGTH // 4) - len(PROMPT) // 4
    assert max(used) <= of_prompt + WIDTH * of_output


@pytest.mark.parametrize("where", ["rows", "selector", "commit", "branches"])
def test_a_fault_of_a_branching_sequence_ends_it_alone_and_leaves_nothing(
    new_runner: NewRunner,
    expected: Expected,
    where: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    strategy = herd()
    commit = strategy.commit

    def broken(*args: Any) -> Any:
        raise RuntimeError("broken")

    def break_later(draft: Any, own: Any) -> Any:
        decision = commit(draft, own)
        if len(strategy.branches[0].token_ids) > len(PROMPT) + 5:
            if where == "selector":
                monkeypatch.setattr(Herd, "selector", broken)
            elif where == "branches":  # one that nothing in the pool belongs to
                stranger = Branch([1, 2, 3], Branch([1, 2]), 1)
                strategy.branches = (*strategy.branches, stranger)
            else:
                monkeypatch.setattr(strategy, where, broken)
        return decision

    monkeypatch.setattr(strategy, "commit", break_later)
    batch = Batch(new_runner())
    first = batch.submit(expected.company[0])
    state = batch.submit(branching_request(), strategy=strategy)
    batch.finish()
    assert batch.answers[first].token_ids == expected.answers[0]
    assert batch.answers[state].error is not None


def test_cancelling_frees_all_branches_at_once(new_runner: NewRunner) -> None:
    runner = new_runner()
    batch = Batch(runner)
    states = [batch.submit(branching_request(), strategy=make()) for make in (contrast, herd)]
    for _ in range(6):
        batch.rounds.step()
    assert runner.pool.num_sequences == 2 + WIDTH
    for state in states:
        batch.rounds.cancel(state, report=True)
    assert runner.pool.num_free_blocks == runner.pool.num_blocks
    assert runner.pool.num_sequences == 0


def test_a_sequence_takes_as_many_places_as_it_may_have_branches(new_runner: NewRunner) -> None:
    together: list[int] = []

    def note(batch: Batch) -> None:
        together.append(len(batch.scheduler.running))

    batch = Batch(new_runner(), max_num_seqs=WIDTH + 1, before_round=note)
    for _ in range(2):
        batch.submit(branching_request(), strategy=herd())
    batch.submit(branching_request())
    batch.finish()
    assert max(together) == 2, "never two of the wide ones"


def test_a_branch_shares_the_longest_prefix_before_it_but_never_a_last_token() -> None:
    lines = [[1, 2, 3, 4, 5], [1, 2, 3, 9], [1, 2, 3, 4, 5, 6], [1, 8], [1, 2, 3, 4, 5]]
    branches = [Branch(copy.copy(line)) for line in lines]
    share_prefixes(branches, at_least=2)
    shares = [
        (branches.index(branch.source), branch.num_shared) if branch.source else None
        for branch in branches
    ]
    assert shares == [None, (0, 3), (0, 4), None, (0, 4)]
