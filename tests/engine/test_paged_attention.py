"""Attention through a kernel that reads block tables gives what attention gives without one.

The kernels are torch's on a GPU; here plain functions stand in for them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import structlog
import torch
from engine.mixed_batches import expected_logits, run_mixed_batches
from engine.plain_flex import PlainFlex, flex_kernel
from engine.plain_model import PlainModel, largest_difference, plain_model, random_ids
from engine.plain_varlen import PlainVarlen, varlen_kernel
from engine.tiny_models import SUPPORTED, VOCAB_SIZE, WINDOW, build_tiny
from outrider_runtime.model.batch import RaggedBatch, SequenceRows
from outrider_runtime.model.layer_reading import LayerReading
from outrider_runtime.model.paged_attention import PagedKernel
from outrider_runtime.model.ragged_runner import RaggedRunner

TOLERANCE = 1e-5
"""Of logits of size 2 to 5, in float32."""

NOT_FOR_VARLEN = ["gemma2", "gpt_oss", "deepseek_v3"]
"""Soft cap, sinks, keys wider than values."""

KERNELS: Mapping[str, Callable[[], PagedKernel]] = {
    "varlen": lambda: varlen_kernel(PlainVarlen()),
    "flex": lambda: flex_kernel(PlainFlex()),
}


@pytest.fixture(params=list(KERNELS))
def kernel(request: pytest.FixtureRequest) -> PagedKernel:
    return KERNELS[request.param]()


def paged_runner(
    name: str, kernel: PagedKernel, *, num_blocks: int = 64, block_size: int = 4, **overrides: Any
) -> RaggedRunner:
    return RaggedRunner(
        build_tiny(name, **overrides),
        num_blocks=num_blocks,
        block_size=block_size,
        paged_kernel=kernel,
    )


@pytest.mark.parametrize("name", SUPPORTED)
def test_mixed_batches_give_the_logits_of_one_sequence_at_a_time(
    name: str, kernel: PagedKernel
) -> None:
    if name in NOT_FOR_VARLEN and kernel.attention.name == "varlen":
        pytest.skip("no layer of this model can use it")
    runner = paged_runner(name, kernel)
    assert runner.paged
    actual = run_mixed_batches(runner)
    assert not runner.windows  # nothing was gathered
    assert largest_difference(actual, expected_logits(plain_model(name))) < TOLERANCE


@pytest.mark.parametrize("block_size", [1, 5, 16, 64])
@pytest.mark.parametrize("name", ["llama", "mistral", "gpt2"])
def test_any_size_of_blocks_will_do(name: str, block_size: int, kernel: PagedKernel) -> None:
    runner = paged_runner(name, kernel, num_blocks=400 // block_size, block_size=block_size)
    expected = expected_logits(plain_model(name))
    assert largest_difference(run_mixed_batches(runner), expected) < TOLERANCE


def test_tables_wider_than_needed_do_no_harm(
    kernel: PagedKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = paged_runner("mistral", kernel)
    keys = RaggedBatch.paged_keys.fget  # type: ignore[attr-defined]

    def wider(batch: RaggedBatch) -> Any:
        found = keys(batch)
        others = torch.full((len(found.tables), 9), 2**30, dtype=torch.int32)
        return replace(found, tables=torch.cat([found.tables, others], 1))

    monkeypatch.setattr(RaggedBatch, "paged_keys", property(wider))
    expected = expected_logits(plain_model("mistral"))
    assert largest_difference(run_mixed_batches(runner), expected) < TOLERANCE


def test_sequences_may_share_blocks_and_lie_in_any_order(kernel: PagedKernel) -> None:
    runner = paged_runner("mistral", kernel)
    pool = runner.pool
    singles = [pool.create() for _ in range(pool.num_blocks)]
    pool.append_all([(handle, pool.block_size) for handle in singles])
    for handle in random.Random(1).sample(singles, 40):
        pool.free(handle)
    text = random_ids(22)
    first = pool.create()
    for start in range(0, 22, 5):
        runner.forward([SequenceRows(first, text[start : start + 5], 0)])
    table = pool.table(first).tolist()
    assert table != list(range(table[0], table[0] + len(table)))
    second, third = pool.fork(first), pool.fork(first, 9)
    more = {first: [5, 6, 7], second: [8], third: random_ids(6, seed=3)}
    logits = runner.forward([SequenceRows(h, new, len(new)) for h, new in more.items()])
    plain = plain_model("mistral")
    expected = [
        plain.logits(text + more[first], last=3),
        plain.logits(text + more[second], last=1),
        plain.logits(text[:9] + more[third], last=6),
    ]
    assert largest_difference(logits, torch.cat(expected)) < TOLERANCE


def test_a_long_prefill_beside_short_rows(kernel: PagedKernel) -> None:
    settings: dict[str, Any] = {"max_position_embeddings": 2048, "num_hidden_layers": 2}
    runner = paged_runner("mistral", kernel, num_blocks=100, block_size=16, **settings)
    plain = PlainModel("mistral", **settings)
    texts = [random_ids(n, seed=n) for n in (700, 2, 31)]
    handles = [runner.pool.create() for _ in texts]
    for first, last in ((0, 1), (1, 2)):  # the second half of each beside the first of others
        runner.forward(
            [
                SequenceRows(h, t[len(t) * first // 2 : len(t) * last // 2], 0)
                for h, t in zip(handles, texts, strict=True)
            ]
        )
    logits = runner.forward([SequenceRows(h, [7, 8], 2) for h in handles])
    expected = torch.cat([plain.logits([*text, 7, 8], last=2) for text in texts])
    assert largest_difference(logits, expected) < TOLERANCE


def test_a_sequence_of_nan_harms_nobody_else(kernel: PagedKernel) -> None:
    poison = VOCAB_SIZE - 1
    model = build_tiny("llama", tie_word_embeddings=False)
    with torch.no_grad():
        model.get_input_embeddings().weight[poison] = float("nan")
    runner = RaggedRunner(model, num_blocks=32, block_size=4, paged_kernel=kernel)
    assert runner.paged
    gone = runner.pool.create()
    runner.forward([SequenceRows(gone, [poison] * 60, 0)])
    runner.pool.free(gone)
    text = [min(token, poison - 1) for token in random_ids(21)]
    sick, well = runner.pool.create(), runner.pool.create()
    logits = runner.forward([SequenceRows(sick, [poison] * 5, 1), SequenceRows(well, text, 21)])
    expected = PlainModel("llama", tie_word_embeddings=False).logits(text)
    assert logits[0].isnan().all()
    assert largest_difference(logits[1:], expected) < TOLERANCE


def test_readings_and_first_layers_work_as_without_it(kernel: PagedKernel) -> None:
    text = random_ids(20)
    found: list[list[torch.Tensor]] = []
    for used in (None, kernel):
        runner = RaggedRunner(build_tiny("mistral"), num_blocks=64, block_size=4, paged_kernel=used)
        reading = LayerReading(3, hidden_of=[1, 3], logits_of=[2], weights=True)
        handle, early = runner.pool.create(), runner.pool.create()
        logits = runner.forward([SequenceRows(handle, text, 2, [reading])])
        first = runner.forward([SequenceRows(early, text, 2)], num_layers=1)
        found.append(
            [
                *(logits, first, *reading.hidden_states.values()),
                *(*reading.logits.values(), *reading.attentions),
            ]
        )
    assert len(found[0]) == 8
    for plain, paged in zip(*found, strict=True):
        assert largest_difference(paged, plain) < 10 * TOLERANCE


class TestAtLoad:
    """A kernel that gives something else is not used."""

    @pytest.mark.parametrize(
        "changed",
        [
            {"scale": 0.3},
            {"window_size": (WINDOW, 0)},
            {"window_size": (-1, 0)},
            {"window_size": (WINDOW - 1, -1)},
        ],
    )
    def test_other_results_are_noticed(self, changed: dict[str, Any]) -> None:
        plain, released = PlainVarlen(), []
        kernel = varlen_kernel(
            lambda *tensors, **options: plain(*tensors, **{**options, **changed}),
            lambda: released.append(True),
        )
        with structlog.testing.capture_logs() as logs:
            runner = paged_runner("mistral", kernel)
        assert not runner.paged
        assert released == [True]
        (rejected,) = [log for log in logs if log["event"] == "paged_attention_rejected"]
        assert "off by" in rejected["why"]
        expected = expected_logits(plain_model("mistral"))
        assert largest_difference(run_mixed_batches(runner), expected) < TOLERANCE

    @pytest.mark.parametrize("off_by", [-1, 1])
    def test_a_window_off_by_one_is_noticed_though_it_is_longer_than_the_texts(
        self, off_by: int
    ) -> None:
        plain = PlainVarlen()

        def attend(*tensors: Any, window_size: tuple[int, int], **options: Any) -> torch.Tensor:
            return plain(*tensors, window_size=(window_size[0] + off_by, 0), **options)

        assert paged_runner("mistral", varlen_kernel(plain), sliding_window=100).paged
        assert not paged_runner("mistral", varlen_kernel(attend), sliding_window=100).paged

    def test_garbage_and_errors_are_noticed(self) -> None:
        calls: list[int] = []

        def refuse(*_: object, **__: object) -> torch.Tensor:
            calls.append(1)
            raise NotImplementedError("no block tables here\nat all")

        with structlog.testing.capture_logs() as logs:
            assert not paged_runner("llama", varlen_kernel(refuse)).paged
            garbage = varlen_kernel(lambda query, *_, **__: torch.full_like(query, float("nan")))
            assert not paged_runner("llama", garbage).paged
        whys = [log["why"] for log in logs if log["event"] == "paged_attention_rejected"]
        assert len(calls) == 1
        assert whys == ["no block tables here", "a row is off by inf of its largest number"]

    @pytest.mark.parametrize(("positions", "paged"), [(9, False), (13, False), (14, True)])
    def test_a_model_of_few_positions_does_without(
        self, positions: int, paged: bool, kernel: PagedKernel
    ) -> None:
        runner = paged_runner("gpt2", kernel, max_position_embeddings=positions)
        assert runner.paged is paged

    def test_tables_are_followed_over_the_end_of_large_blocks(self) -> None:
        plain = PlainVarlen()

        def attend(*tensors: Any, block_table: torch.Tensor, **options: Any) -> torch.Tensor:
            first = block_table[:, :1].expand_as(block_table)
            return plain(*tensors, block_table=first, **options)

        assert not paged_runner("llama", varlen_kernel(attend), num_blocks=4, block_size=64).paged

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_rounding_of_sixteen_bit_is_let_pass(
        self, dtype: torch.dtype, kernel: PagedKernel
    ) -> None:
        assert paged_runner("llama", kernel, dtype=dtype).paged
        plain = PlainVarlen()

        def attend(*tensors: Any, scale: float, **options: Any) -> torch.Tensor:
            return plain(*tensors, scale=scale * 1.1, **options)

        assert not paged_runner("llama", varlen_kernel(attend), dtype=dtype).paged

    def test_rows_whose_bits_depend_on_their_company_are_noticed(self) -> None:
        plain = PlainVarlen()

        def attend(query: torch.Tensor, *tensors: Any, **options: Any) -> torch.Tensor:
            return plain(query, *tensors, **options) * (1 + len(query) * 2**-22)

        with structlog.testing.capture_logs() as logs:
            assert not paged_runner("llama", varlen_kernel(attend)).paged
        assert "depend on what else is in the batch" in logs[-1]["why"]

    def test_the_next_choice_is_tried_where_the_first_is_not_used(self) -> None:
        released: list[str] = []

        def first() -> PagedKernel:
            kernel = varlen_kernel(PlainVarlen(), lambda: released.append("varlen"))
            return kernel._replace(otherwise=lambda: flex_kernel(PlainFlex()))

        with structlog.testing.capture_logs() as logs:
            assert paged_runner("llama", first()).paged
            assert released == []
            assert paged_runner("gemma2", first()).paged
        assert released == ["varlen"]
        assert [(log["event"].rsplit("_")[-1], log["kernel"]) for log in logs] == [
            ("adopted", "varlen"),
            ("rejected", "varlen"),
            ("adopted", "flex"),
        ]
