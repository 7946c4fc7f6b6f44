from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from engine.mixed_batches import expected_logits, run_mixed_batches
from engine.plain_model import (
    PlainModel,
    largest_difference,
    plain_model,
    ragged_runner,
    random_ids,
)
from engine.tiny_models import MAX_POSITIONS, SUPPORTED, VOCAB_SIZE, WINDOW, build_tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from outrider_runtime.model import attention_groups
from outrider_runtime.model.batch import RaggedBatch, SequenceRows
from outrider_runtime.model.kv_pool import KVPool, OutOfBlocks
from outrider_runtime.model.ragged_runner import RaggedRunner

TOLERANCE = 1e-5
"""Of logits of size 2 to 5, in float32."""

KINDS_OF_ATTENTION = ["llama", "mistral", "gemma2", "gpt_oss", "deepseek_v3", "gpt2"]
"""Grouped heads; window; soft cap and window; sinks; Dk != Dv; none of these."""


@pytest.mark.parametrize("name", SUPPORTED)
def test_mixed_batches_with_rollback_give_the_logits_of_one_sequence_at_a_time(name: str) -> None:
    actual = run_mixed_batches(ragged_runner(name))
    expected = expected_logits(plain_model(name))
    assert expected.abs().max() > 0.1
    assert largest_difference(actual, expected) < TOLERANCE


def scatter_free_blocks(pool: KVPool) -> None:
    """Takes every other block, so that no sequence lies in consecutive slots."""
    singles = [pool.create() for _ in range(pool.num_blocks)]
    pool.append_all([(handle, pool.block_size) for handle in singles])
    for handle in singles:
        if pool.table(handle)[0] % 2:
            pool.free(handle)


@pytest.mark.parametrize("name", KINDS_OF_ATTENTION)
@pytest.mark.parametrize("in_place_keys", [0, 10**9])
@pytest.mark.parametrize("max_padding", [0, 10**9])
@pytest.mark.parametrize(
    ("block_size", "scattered"), [(1, True), (5, False), (5, True), (64, False)]
)
def test_every_way_of_grouping_gives_the_same_logits(
    name: str,
    in_place_keys: int,
    max_padding: int,
    block_size: int,
    scattered: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(attention_groups, "IN_PLACE_KEYS", in_place_keys)
    monkeypatch.setattr(attention_groups, "MAX_PADDING", max_padding)
    runner = ragged_runner(name, num_blocks=400 // block_size, block_size=block_size)
    if scattered:
        scatter_free_blocks(runner.pool)
    expected = expected_logits(plain_model(name))
    assert largest_difference(run_mixed_batches(runner), expected) < TOLERANCE


@pytest.mark.parametrize(
    ("name", "attention"), [("gpt2", "sdpa"), ("opt", "sdpa"), ("biogpt", "sdpa")]
)
def test_in_float64_the_difference_is_rounding_alone(name: str, attention: str) -> None:
    # Models whose norms do not round to float32 on the way.
    plain = PlainModel(name, attention=attention, dtype=torch.float64)
    runner = RaggedRunner(build_tiny(name, dtype=torch.float64), num_blocks=64, block_size=4)
    actual = run_mixed_batches(runner)
    assert actual.dtype == torch.float64
    assert largest_difference(actual, expected_logits(plain)) < 1e-12


class TestTheComparisonNotices:
    """Without these, the tests above might pass whatever the engine does."""

    def test_a_missing_rollback(self) -> None:
        actual = run_mixed_batches(ragged_runner("llama"), roll_back=False)
        assert largest_difference(actual, expected_logits(plain_model("llama"))) > 0.1

    @pytest.mark.parametrize("name", ["mistral", "gemma2", "gpt_oss"])
    def test_an_ignored_window(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        groups = RaggedBatch.groups
        monkeypatch.setattr(RaggedBatch, "groups", lambda batch, _: groups(batch, None))
        actual = run_mixed_batches(ragged_runner(name))
        assert largest_difference(actual, expected_logits(plain_model(name))) > 0.1

    @pytest.mark.parametrize("off_by", [-1, 1])
    def test_a_window_off_by_one(self, off_by: int, monkeypatch: pytest.MonkeyPatch) -> None:
        groups = RaggedBatch.groups
        monkeypatch.setattr(
            RaggedBatch, "groups", lambda batch, window: groups(batch, window + off_by)
        )
        actual = run_mixed_batches(ragged_runner("mistral"))
        assert largest_difference(actual, expected_logits(plain_model("mistral"))) > 0.1

    def test_an_ignored_soft_cap(self) -> None:
        plain = PlainModel("gemma2", attn_logit_softcapping=None)
        actual = run_mixed_batches(ragged_runner("gemma2"))
        assert largest_difference(actual, expected_logits(plain)) > 0.01


def random_schedule(name: str, data: st.DataObject) -> None:
    """Random appends, rollbacks, forks and frees; every logit against the plain model."""
    plain = plain_model(name)
    runner = ragged_runner(name, num_blocks=24, block_size=data.draw(st.integers(1, 8)))
    tokens: dict[int, list[int]] = {}
    num_checked = 0
    for step in range(data.draw(st.integers(3, 8))):
        while len(tokens) < 4:
            tokens[runner.pool.create()] = []
        for handle in list(tokens):
            match data.draw(st.sampled_from(["keep", "keep", "truncate", "fork", "free"])):
                case "truncate":
                    length = data.draw(st.integers(0, len(tokens[handle])))
                    runner.pool.truncate(handle, length)
                    del tokens[handle][length:]
                case "fork":
                    length = data.draw(st.integers(0, len(tokens[handle])))
                    tokens[runner.pool.fork(handle, length)] = tokens[handle][:length]
                case "free":
                    runner.pool.free(handle)
                    del tokens[handle]
        batch = []
        for handle in data.draw(st.permutations(list(tokens))):
            count = min(
                data.draw(st.sampled_from([0, 1, 1, 1, 4, 6, 20])), 60 - len(tokens[handle])
            )
            if count > 0:
                new = random_ids(count, seed=100 * step + handle)
                batch.append(SequenceRows(handle, new, data.draw(st.integers(0, count))))
        if not batch:
            continue
        lengths = {handle: runner.pool.length(handle) for handle in tokens}
        try:
            logits = runner.forward(batch)
        except OutOfBlocks:
            assert {handle: runner.pool.length(handle) for handle in tokens} == lengths
            continue
        finally:
            runner.pool.check_integrity()
        expected = []
        for rows in batch:
            tokens[rows.handle] += rows.token_ids
            if rows.num_logits:
                expected.append(plain.logits(tokens[rows.handle], last=rows.num_logits))
        if expected:
            num_checked += len(logits)
            assert largest_difference(logits, torch.cat(expected)) < TOLERANCE
        else:
            assert logits.shape == (0, runner.vocab_size)


@settings(max_examples=25, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_any_schedule_gives_the_logits_of_one_sequence_at_a_time(
    name: str, data: st.DataObject
) -> None:
    random_schedule(name, data)


def test_forks_share_the_prompt_and_then_go_their_own_ways() -> None:
    runner = ragged_runner("llama", block_size=4)
    prompt = random_ids(18)
    first = runner.pool.create()
    runner.forward([SequenceRows(first, prompt, 1)])
    handles = [first, *(runner.pool.fork(first) for _ in range(3))]
    assert runner.pool.num_blocks - runner.pool.num_free_blocks == 5
    texts = {handle: list(prompt) for handle in handles}
    for step in range(4):
        batch = [
            SequenceRows(h, random_ids(1 + i, seed=10 * step + i), 1) for i, h in enumerate(handles)
        ]
        logits = runner.forward(batch)
        for row, rows in zip(logits, batch, strict=True):
            texts[rows.handle] += rows.token_ids
            expected = plain_model("llama").logits(texts[rows.handle], last=1)[0]
            assert largest_difference(row, expected) < TOLERANCE
    shared = set.intersection(*(set(runner.pool.table(handle)) for handle in handles))
    assert len(shared) == 4, "the full blocks of the prompt are still shared"


def test_a_fork_in_the_middle_does_not_disturb_the_rest_of_its_parent() -> None:
    runner = ragged_runner("llama", block_size=4)
    text = random_ids(15)
    parent = runner.pool.create()
    runner.forward([SequenceRows(parent, text, 0)])
    branch = runner.pool.fork(parent, 6)
    other, next_id = random_ids(3, seed=1), random_ids(1, seed=2)
    logits = runner.forward([SequenceRows(branch, other, 3), SequenceRows(parent, next_id, 1)])
    expected = torch.cat(
        [
            plain_model("llama").logits(text[:6] + other, last=3),
            plain_model("llama").logits(text + next_id, last=1),
        ]
    )
    assert largest_difference(logits, expected) < TOLERANCE


@pytest.mark.parametrize("window", [None, 600])
def test_a_long_sequence_and_a_short_one_may_be_padded_together(
    window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Beyond 512 keys the kernel works in blocks, and whole blocks are padding.
    monkeypatch.setattr(attention_groups, "IN_PLACE_KEYS", 10**9)
    monkeypatch.setattr(attention_groups, "MAX_PADDING", 10**9)
    settings_: dict[str, Any] = {
        "max_position_embeddings": 2048,
        "num_hidden_layers": 2,
        "sliding_window": window,
    }
    runner = RaggedRunner(build_tiny("mistral", **settings_), num_blocks=200, block_size=16)
    plain = PlainModel("mistral", **settings_)
    texts = [random_ids(n, seed=n) for n in (1100, 2, 530)]
    handles = [runner.pool.create() for _ in texts]
    runner.forward([SequenceRows(h, t[:-1], 0) for h, t in zip(handles, texts, strict=True)])
    logits = runner.forward(
        [SequenceRows(h, t[-1:], 1) for h, t in zip(handles, texts, strict=True)]
    )
    more = random_ids(5, seed=9)
    verified = runner.forward(
        [SequenceRows(h, more[: 5 - i], 5 - i) for i, h in enumerate(handles)]
    )
    expected = torch.cat([plain.logits(text, last=1) for text in texts])
    assert largest_difference(logits, expected) < TOLERANCE
    expected = torch.cat(
        [plain.logits(text + more[: 5 - i], last=5 - i) for i, text in enumerate(texts)]
    )
    assert largest_difference(verified, expected) < TOLERANCE


def test_a_pool_without_room_changes_nothing_and_the_next_batch_is_right() -> None:
    runner = ragged_runner("llama", num_blocks=6, block_size=4)
    pool = runner.pool
    text = random_ids(10)
    first, second = pool.create(), pool.create()
    runner.forward([SequenceRows(first, text, 0)])
    with pytest.raises(OutOfBlocks):
        runner.forward([SequenceRows(first, [5], 1), SequenceRows(second, random_ids(13), 1)])
    assert (pool.length(first), pool.length(second)) == (10, 0)
    pool.check_integrity()
    logits = runner.forward([SequenceRows(first, [5], 1)])
    assert largest_difference(logits, plain_model("llama").logits([*text, 5], last=1)) < TOLERANCE


def test_a_forward_that_fails_halfway_leaves_no_positions_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runner = ragged_runner("llama", block_size=4)
    pool = runner.pool
    text = random_ids(6)
    first = pool.create()
    runner.forward([SequenceRows(first, text, 0)])
    second = pool.fork(first)

    def fail(*_: object) -> None:
        raise RuntimeError("no luck")

    with monkeypatch.context() as broken:
        broken.setattr(RaggedBatch, "groups", fail)
        with pytest.raises(RuntimeError, match="no luck"):
            runner.forward([SequenceRows(first, [7], 1), SequenceRows(second, [8, 9], 1)])
    assert (pool.length(first), pool.length(second)) == (6, 6)
    pool.check_integrity()
    logits = runner.forward([SequenceRows(first, [7], 1), SequenceRows(second, [8, 9], 1)])
    expected = [plain_model("llama").logits(text + new, last=1) for new in ([7], [8, 9])]
    assert largest_difference(logits, torch.cat(expected)) < TOLERANCE


@pytest.mark.parametrize("in_place_keys", [0, 10**9])
@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_a_sequence_of_nan_harms_nobody_else(
    name: str, in_place_keys: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention_groups, "IN_PLACE_KEYS", in_place_keys)
    poison = VOCAB_SIZE - 1
    model = build_tiny(name, tie_word_embeddings=False)
    with torch.no_grad():
        model.get_input_embeddings().weight[poison] = float("nan")
    plain = PlainModel(name, tie_word_embeddings=False)
    runner = RaggedRunner(model, num_blocks=32, block_size=4)
    pool = runner.pool
    # Leaves NaN in blocks that others take over, and goes on beside them.
    for _ in range(2):
        gone = pool.create()
        runner.forward([SequenceRows(gone, [poison] * 60, 0)])
        pool.free(gone)
    sick, first, second = pool.create(), pool.create(), pool.create()
    texts = [[min(t, poison - 1) for t in random_ids(n, seed=n)] for n in (21, 6)]
    runner.forward(
        [
            SequenceRows(sick, [poison] * 11, 0),
            SequenceRows(first, texts[0][:-3], 0),
            SequenceRows(second, texts[1][:-1], 0),
        ]
    )
    logits = runner.forward(
        [
            SequenceRows(first, texts[0][-3:], 3),
            SequenceRows(sick, [poison], 1),
            SequenceRows(second, texts[1][-1:], 1),
        ]
    )
    assert logits[3].isnan().all()
    healthy = torch.cat([logits[:3], logits[4:]])
    expected = torch.cat([plain.logits(texts[0], last=3), plain.logits(texts[1], last=1)])
    assert largest_difference(healthy, expected) < TOLERANCE


@pytest.mark.parametrize(
    ("rows", "match"),
    [
        ([(0, [], 0)], "no new tokens"),
        ([(0, [5], 2)], "logits"),
        ([(0, [5], -1)], "logits"),
        ([(0, [VOCAB_SIZE], 1)], "out of range"),
        ([(0, [-1], 1)], "out of range"),
        ([(0, [5] * (MAX_POSITIONS - 9), 1)], "positions"),
        ([(0, [5], 1), (0, [6], 1)], "twice"),
        ([], "at least one"),
    ],
)
def test_bad_rows_are_refused_and_change_nothing(
    rows: list[tuple[int, list[int], int]], match: str
) -> None:
    runner = ragged_runner("llama")
    handle = runner.pool.create()
    assert handle == 0
    runner.forward([SequenceRows(handle, random_ids(10), 0)])
    with pytest.raises(ValueError, match=match):
        runner.forward([SequenceRows(*row) for row in rows])
    assert runner.pool.length(handle) == 10
    runner.pool.check_integrity()


def test_a_sequence_may_fill_the_models_last_position() -> None:
    runner = ragged_runner("gpt2")
    text = random_ids(MAX_POSITIONS)
    handle = runner.pool.create()
    runner.forward([SequenceRows(handle, text[:-1], 0)])
    logits = runner.forward([SequenceRows(handle, text[-1:], 1)])
    assert largest_difference(logits, plain_model("gpt2").logits(text, last=1)) < TOLERANCE


def test_logits_of_sixteen_bit_models_are_float32() -> None:
    runner = RaggedRunner(build_tiny("llama", dtype=torch.bfloat16), num_blocks=8, block_size=4)
    logits = runner.forward([SequenceRows(runner.pool.create(), random_ids(5), 2)])
    assert (logits.dtype, logits.shape) == (torch.float32, (2, VOCAB_SIZE))
    assert runner.dtype == torch.bfloat16


def test_the_engine_thread_need_not_be_the_one_that_loaded_the_model() -> None:
    runner = ragged_runner("llama")
    text = random_ids(12)
    results: list[torch.Tensor] = []
    thread = threading.Thread(
        target=lambda: results.append(runner.forward([SequenceRows(runner.pool.create(), text, 1)]))
    )
    thread.start()
    thread.join(timeout=60)
    assert largest_difference(results[0], plain_model("llama").logits(text, last=1)) < TOLERANCE


def test_a_model_that_was_taken_over_refuses_to_run_by_itself() -> None:
    model = build_tiny("llama")
    RaggedRunner(model, num_blocks=4, block_size=4)
    with pytest.raises(RuntimeError, match="only through its runner"):
        model(input_ids=torch.tensor([[5, 6]]), use_cache=False)


def test_the_cache_size_is_measured_from_what_layers_store() -> None:
    # 3 layers of 2 key heads of 16, keys and values, 4 bytes.
    assert ragged_runner("llama").bytes_per_token == 3 * 2 * 16 * 2 * 4
    # 4 heads of 16 + 8 for keys and 16 for values.
    assert ragged_runner("deepseek_v3").bytes_per_token == 3 * 4 * (24 + 16) * 4


def test_the_runner_tells_which_windows_attention_asked_for() -> None:
    runner = ragged_runner("mistral")
    handle = runner.pool.create()
    runner.forward([SequenceRows(handle, random_ids(30), 0)])
    assert runner.windows == {WINDOW}
