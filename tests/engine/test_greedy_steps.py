"""Several greedy steps in one go find what forwards one after the other find, to the bit."""

from __future__ import annotations

import pytest
import torch
from engine.compiled_llama import compiled_llama_runner, spoil_scores
from engine.compiler import needs_compiler
from engine.plain_model import ragged_runner, random_ids
from outrider_runtime.model.batch import SequenceRows
from outrider_runtime.model.kv_pool import OutOfBlocks
from outrider_runtime.model.ragged_runner import RaggedRunner

pytestmark = [needs_compiler, pytest.mark.timeout(400)]  # the first time something is compiled


@pytest.fixture(scope="module")
def runner() -> RaggedRunner:
    return compiled_llama_runner()


@pytest.fixture(autouse=True)
def nothing_is_left(runner: RaggedRunner) -> None:
    for handle in list(runner.pool._sequences):
        runner.pool.free(handle)


def placed(runner: RaggedRunner, *lengths: int) -> list[int]:
    handles = [runner.pool.create() for _ in lengths]
    for seed, (handle, length) in enumerate(zip(handles, lengths, strict=True)):
        if length:
            runner.forward([SequenceRows(handle, random_ids(length, seed=seed), 0)])
    return handles


def one_by_one(runner: RaggedRunner, batch: list[SequenceRows], steps: int) -> list[list[int]]:
    found: list[list[int]] = [[] for _ in batch]
    for _ in range(steps):
        tokens = runner.forward(batch).argmax(-1).tolist()
        for own, token in zip(found, tokens, strict=True):
            own.append(token)
        batch = [SequenceRows(r.handle, [token], 1) for r, token in zip(batch, tokens, strict=True)]
    return found


@pytest.mark.parametrize("steps", [1, 2, 9])
@pytest.mark.parametrize("rows", [(1,), (1, 1, 1), (2, 1, 7)])
def test_they_find_what_steps_find(runner: RaggedRunner, rows: tuple[int, ...], steps: int) -> None:
    lengths = [11, 4, 0][: len(rows)]
    news = [random_ids(count, seed=9 + i) for i, count in enumerate(rows)]
    batches = [
        [SequenceRows(h, new, 1) for h, new in zip(placed(runner, *lengths), news, strict=True)]
        for _ in range(2)
    ]
    expected = one_by_one(runner, batches[0], steps)
    found = runner.forward_greedily(batches[1], steps)
    assert found is not None
    assert found.token_ids == expected
    for ours, theirs in zip(batches[1], batches[0], strict=True):
        length = runner.pool.length(theirs.handle)
        assert runner.pool.length(ours.handle) == length
        for layer in runner._storage.layers:  # and what lies in the cache is the same
            slots = [runner.pool.slots(one.handle, 0, length) for one in (ours, theirs)]
            assert torch.equal(layer[slots[0]], layer[slots[1]])
    after = [runner.forward([SequenceRows(b[0].handle, [7], 1)]) for b in batches]
    assert torch.equal(*after)


def test_it_ends_once_no_sequence_is_sure_of_its_tokens(runner: RaggedRunner) -> None:
    handles = placed(runner, 6, 9)
    batch = [SequenceRows(handle, [5], 1) for handle in handles]
    whole = runner.forward_greedily(batch, 8, least_log_probs=[-99.0, -99.0])
    assert whole is not None
    for handle, length in zip(handles, (6, 9), strict=True):
        runner.pool.truncate(handle, length)
    assert len(whole.token_ids[0]) == 8
    least = [min(own[:4]) + 1e-6 for own in whole.log_probs]
    ends = [
        next(i for i, found in enumerate(own) if found < bound)
        for own, bound in zip(whole.log_probs, least, strict=True)
    ]
    part = runner.forward_greedily(batch, 8, least_log_probs=least)
    assert part is not None
    count = max(ends) + 1
    assert [len(own) for own in part.token_ids] == [count, count]
    assert part.token_ids == [own[:count] for own in whole.token_ids]
    assert part.log_probs == [own[:count] for own in whole.log_probs]
    assert [runner.pool.length(h) for h in handles] == [6 + count, 9 + count]
    logits = runner.forward([SequenceRows(handles[0], [part.token_ids[0][-1]], 1)])
    if count < 8:
        expected = logits.log_softmax(-1).max()
        assert whole.log_probs[0][count] == pytest.approx(float(expected), abs=1e-5)


def test_a_block_that_is_shared_is_not_written_to(runner: RaggedRunner) -> None:
    (source,) = placed(runner, 6)
    fork = runner.pool.fork(source)
    before = runner.forward([SequenceRows(source, [5], 1)])
    runner.pool.truncate(source, 6)
    runner.forward_greedily([SequenceRows(fork, [8], 1)], 5)
    assert torch.equal(runner.forward([SequenceRows(source, [5], 1)]), before)


def test_without_room_nothing_is_changed() -> None:
    small = compiled_llama_runner(num_blocks=4)
    (handle,) = placed(small, 6)
    with pytest.raises(OutOfBlocks):
        small.forward_greedily([SequenceRows(handle, [5], 1)], 12)
    assert small.pool.length(handle) == 6
    small.pool.check_integrity()
    found = small.forward_greedily([SequenceRows(handle, [5], 1)], 10)
    assert found is not None
    assert len(found.token_ids[0]) == 10


def test_a_score_that_is_no_number_leaves_everything_as_it_was(
    runner: RaggedRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    handles = placed(runner, 6, 9)
    batch = [SequenceRows(handle, [5, 8], 1) for handle in handles]
    with monkeypatch.context() as patch:
        spoilt = spoil_scores(patch)
        assert runner.forward_greedily(batch, 3) is None
    assert spoilt == [3]
    assert [runner.pool.length(handle) for handle in handles] == [6, 9]
    runner.pool.check_integrity()
    assert runner.forward_greedily(batch, 3) is not None


def test_a_model_run_in_python_has_none() -> None:
    assert not ragged_runner("llama").runs_greedily
    assert compiled_llama_runner(num_blocks=4).runs_greedily
