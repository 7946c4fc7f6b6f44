"""Forwards as graphs give what the model gives in Python, or are not used.

Graphs are a GPU's; here a tape of operators stands in for one, and a plain function for the kernel.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import structlog
import torch
from engine.mixed_batches import expected_logits, run_mixed_batches
from engine.plain_graph import RerunGraph, TapeGraph
from engine.plain_model import largest_difference, plain_model, random_ids
from engine.plain_varlen import PlainVarlen, StaticVarlen, varlen_kernel
from engine.tiny_models import SUPPORTED, VOCAB_SIZE, build_tiny
from outrider_runtime.errors import StartupError
from outrider_runtime.model.attention_weights import ScoreRule
from outrider_runtime.model.batch import SequenceRows
from outrider_runtime.model.compiled.mode import Compile
from outrider_runtime.model.graphed import graph
from outrider_runtime.model.graphed.graph import Graph, MakeGraph
from outrider_runtime.model.graphed.sizes import SIZES, fits, padded
from outrider_runtime.model.kv_storage import LayerKV
from outrider_runtime.model.layer_reading import LayerReading
from outrider_runtime.model.ragged_runner import RaggedRunner
from outrider_runtime.model.varlen_kernel import Varlen, VarlenAttention
from torch import nn
from transformers import PreTrainedModel

TOLERANCE = 1e-5
"""Of logits of size 2 to 5, in float32."""

BLOCK_SIZE = 4
USUAL = ["llama", "qwen2", "mistral", "gemma3_text", "mixtral", "gpt2"]
"""With windows in some layers, in all and in none, with experts, without rotary positions."""
NOT_PAGED = ["gemma2", "gpt_oss", "deepseek_v3"]


class Counted:
    """Makes graphs that count their replays together."""

    def __init__(self, kind: Callable[[], Graph] = TapeGraph) -> None:
        self.kind = kind
        self.made = 0
        self.replays = 0
        self.fault: Exception | None = None

    def __call__(self) -> Graph:
        self.made += 1
        inner, outer = self.kind(), self

        class One:
            def record(self, run: Callable[[], None]) -> None:
                inner.record(run)

            def replay(self) -> None:
                outer.replays += 1
                if outer.fault is not None:
                    raise outer.fault
                inner.replay()

        return One()


class RowWise(nn.Module):
    """A linear layer in which a row has the same bits in any company, padding for one."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        product = (rows[..., None, :] * self.weight).sum(-1)
        return product if self.bias is None else product + self.bias


def row_wise(name: str, **overrides: Any) -> PreTrainedModel:
    model = build_tiny(name, **overrides)
    for module in list(model.modules()):
        for child_name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                setattr(module, child_name, RowWise(child))
    return model


def runner_of(
    model: PreTrainedModel | str,
    new_graph: MakeGraph | None,
    *,
    attend: Varlen | None = None,
    num_blocks: int = 64,
    compiled: Compile = Compile.AUTO,
) -> RaggedRunner:
    return RaggedRunner(
        build_tiny(model) if isinstance(model, str) else model,
        num_blocks=num_blocks,
        block_size=BLOCK_SIZE,
        compiled=compiled,
        paged_kernel=varlen_kernel(attend or StaticVarlen()),
        new_graph=new_graph,
    )


def random_traffic(runner: RaggedRunner, *, turns: int = 40, seed: int = 5) -> list[torch.Tensor]:
    """Logits of batches of sequences that come, grow, roll back, fork, share blocks and go."""
    choose, pool = random.Random(seed), runner.pool
    handles = [pool.create() for _ in range(5)]
    logits: list[torch.Tensor] = []
    for _ in range(turns):
        place = choose.randrange(len(handles))
        if choose.random() < 0.3 and pool.length(handles[place]):
            handles.append(pool.fork(handles[place]))
            pool.free(handles.pop(0))
        batch = []
        for handle in choose.sample(handles, choose.randint(1, len(handles))):
            length = pool.length(handle)
            if length > 24:
                pool.truncate(handle, choose.randint(1, length))
            count = choose.choice([1, 1, 1, 2, 6, 13])
            tokens = [choose.randrange(VOCAB_SIZE) for _ in range(count)]
            batch.append(SequenceRows(handle, tokens, choose.choice([0, 1, count])))
        logits.append(runner.forward(batch))
    for handle in handles:
        pool.free(handle)
    pool.check_integrity()
    return logits


def rejections(logs: list[Any]) -> list[str]:
    return [log["why"] for log in logs if log["event"] == "graphs_rejected"]


@pytest.mark.parametrize(
    "name",
    [
        *USUAL,
        *[
            pytest.param(name, marks=pytest.mark.slow)
            for name in SUPPORTED
            if name not in [*USUAL, *NOT_PAGED]
        ],
    ],
)
def test_mixed_batches_give_the_logits_of_one_sequence_at_a_time(name: str) -> None:
    graphs = Counted()
    runner = runner_of(name, graphs)
    assert runner.graphed
    before = graphs.replays
    actual = run_mixed_batches(runner)
    assert graphs.replays == before + 3
    assert largest_difference(actual, expected_logits(plain_model(name))) < TOLERANCE


@pytest.mark.parametrize("name", ["llama", "qwen2", "mistral"])
def test_any_traffic_has_the_bits_it_has_without_graphs(name: str) -> None:
    """Where products do not depend on the number of rows, padding shows nowhere."""
    graphs = Counted()
    with_graphs = runner_of(row_wise(name), graphs)
    without = runner_of(row_wise(name), None)
    assert with_graphs.graphed
    assert not without.graphed
    before = graphs.replays
    actual, expected = random_traffic(with_graphs), random_traffic(without)
    assert graphs.replays == before + 40
    assert len({logits.shape[0] for logits in expected}) > 10
    assert all(map(torch.equal, actual, expected))
    assert all(logits.dtype is torch.float32 for logits in actual)


def test_sixteen_bit_models_give_scores_of_thirty_two() -> None:
    graphs = Counted()
    runner, plain = (
        runner_of(row_wise("llama", dtype=torch.bfloat16), make) for make in (graphs, None)
    )
    assert runner.graphed
    actual, expected = random_traffic(runner, turns=10), random_traffic(plain, turns=10)
    assert all(map(torch.equal, actual, expected))
    assert {logits.dtype for logits in actual} == {torch.float32}


def test_a_smaller_batch_sees_nothing_of_a_larger_one_before() -> None:
    runner, fresh = (runner_of(row_wise("llama"), TapeGraph) for _ in range(2))
    many = [SequenceRows(runner.pool.create(), random_ids(3 + i, seed=i), 1) for i in range(9)]
    runner.forward(many)
    logits = []
    for one in (runner, fresh):
        handle = one.pool.create()
        parts = [one.forward([SequenceRows(handle, random_ids(n, seed=n), n)]) for n in (5, 1, 3)]
        logits.append(torch.cat(parts))
    assert torch.equal(*logits)


@torch.inference_mode()
def test_nothing_is_written_but_the_rows_of_the_batch_and_the_spare_block() -> None:
    runner = runner_of("llama", TapeGraph)
    first = runner.pool.create()
    runner.forward([SequenceRows(first, random_ids(9), 0)])
    second = runner.pool.create()
    for rows in runner._storage.layers:
        rows[:] = 7.0
    runner.forward([SequenceRows(first, random_ids(3), 1), SequenceRows(second, [8, 9], 2)])
    pool = runner.pool
    own = {*pool.slots(first, 9, 12), *pool.slots(second, 0, 2)}
    spare = set(range(pool.num_blocks * BLOCK_SIZE, (pool.num_blocks + 1) * BLOCK_SIZE))
    for rows in runner._storage.layers:
        written = set((rows != 7.0).any(1).nonzero()[:, 0].tolist())
        assert own <= written <= own | spare
        assert rows.shape[0] == pool.num_blocks * BLOCK_SIZE + BLOCK_SIZE


def test_tables_grow_as_far_as_the_model_has_positions() -> None:
    settings = {"max_position_embeddings": 120}
    runner = runner_of(row_wise("mistral", **settings), TapeGraph)
    plain = runner_of(row_wise("mistral", **settings), None)
    found = []
    for one in (runner, plain):
        handle, beside = one.pool.create(), one.pool.create()
        tokens = random_ids(120)
        for first in range(0, 120, 5):
            items = [SequenceRows(handle, tokens[first : first + 5], 5)]
            if first % 15 == 0:
                items.append(SequenceRows(beside, tokens[first : first + 2], 1))
            found.append(one.forward(items))
    half = len(found) // 2
    assert all(map(torch.equal, found[:half], found[half:]))


def test_logits_are_the_callers_own() -> None:
    runner = runner_of("llama", TapeGraph)
    handle = runner.pool.create()
    logits = runner.forward([SequenceRows(handle, random_ids(4), 4)])
    kept = logits.clone()
    runner.forward([SequenceRows(handle, [11, 12, 13], 3)])
    assert torch.equal(logits, kept)


def test_larger_batches_readings_and_first_layers_run_in_python() -> None:
    graphs = Counted()
    runner, plain = runner_of(row_wise("llama"), graphs), runner_of(row_wise("llama"), None)
    before = graphs.replays
    found: list[list[torch.Tensor]] = []
    for one in (runner, plain):
        handle = one.pool.create()
        reading = LayerReading(2, hidden_of=[1, 3])
        found.append(
            [
                one.forward([SequenceRows(handle, random_ids(65), 3)]),
                one.forward([SequenceRows(handle, random_ids(3), 3, [reading])]),
                *reading.hidden_states.values(),
                one.forward([SequenceRows(handle, random_ids(2), 2)], num_layers=2),
            ]
        )
    assert graphs.replays == before
    assert all(map(torch.equal, *found))


def test_positions_may_begin_elsewhere() -> None:
    runner, plain = runner_of(row_wise("llama"), TapeGraph), runner_of(row_wise("llama"), None)
    found = []
    for one in (runner, plain):
        handle = one.pool.create()
        rows = SequenceRows(handle, random_ids(5), 5)
        found.append(one.forward([rows], first_positions={handle: 17}))
    assert torch.equal(*found)


def test_a_sequence_of_nan_harms_nobody_else() -> None:
    poison = VOCAB_SIZE - 1
    found = []
    for new_graph in (TapeGraph, None):
        model = row_wise("llama", tie_word_embeddings=False)
        with torch.no_grad():
            model.get_input_embeddings().weight[poison] = float("nan")
        runner = runner_of(model, new_graph)
        sick, well = runner.pool.create(), runner.pool.create()
        text = [min(token, poison - 1) for token in random_ids(9)]
        runner.forward([SequenceRows(sick, [poison] * 30, 0)])
        found.append(runner.forward([SequenceRows(sick, [poison], 1), SequenceRows(well, text, 9)]))
        runner.pool.free(sick)
        found.append(runner.forward([SequenceRows(well, [5], 1)]))
    assert found[0][0].isnan().all()
    assert torch.equal(found[0][1:], found[2][1:])
    assert torch.equal(found[1], found[3])
    assert not found[1].isnan().any()


def test_the_kernel_is_told_the_same_bounds_of_every_batch() -> None:
    attend = StaticVarlen()
    runner = runner_of("llama", TapeGraph, attend=attend)
    attend.told.clear()
    run_mixed_batches(runner)
    # In Python too: the graph has what it was told when it was recorded.
    runner.forward([SequenceRows(runner.pool.create(), random_ids(90), 1)])
    assert attend.told == {(256, 65 * BLOCK_SIZE)}
    assert SIZES[-1] == 256


class TestSizes:
    def test_every_number_of_rows_has_one(self) -> None:
        for size in SIZES:
            assert all(padded(number, SIZES) == size for number in fits(size))
        assert [number for size in SIZES for number in fits(size)] == list(range(1, 257))
        assert padded(257, SIZES) is None

    def test_it_is_the_next_one_that_there_is(self) -> None:
        assert [padded(number, [2, 8]) for number in (1, 2, 3, 8, 9)] == [2, 2, 8, 8, None]
        assert padded(1, []) is None


class TestAtLoad:
    """What cannot be recorded or gives something else is not used, and the log says why, once."""

    def rejected(self, model: PreTrainedModel | str, new_graph: MakeGraph, **others: Any) -> str:
        with structlog.testing.capture_logs() as logs:
            runner = runner_of(model, new_graph, **others)
        assert runner.paged
        assert not runner.graphed
        (why,) = rejections(logs)
        run_mixed_batches(runner)
        return why

    def test_experts_that_python_looks_up_cannot_be_recorded(self) -> None:
        model = build_tiny("mixtral", dtype=torch.float64)
        assert "not permitted when stream is capturing" in self.rejected(model, TapeGraph)
        assert runner_of(model, RerunGraph).graphed

    def test_a_kernel_that_waits_for_its_numbers_cannot_be_recorded(self) -> None:
        why = self.rejected("llama", TapeGraph, attend=PlainVarlen())
        assert "not permitted when stream is capturing" in why

    def test_what_a_graph_cannot_see_is_noticed(self) -> None:
        """Positions that pass through Python are those of the recording for ever."""

        def through_python(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
            positions = torch.from_numpy(kwargs["position_ids"].numpy().copy())
            return args, {**kwargs, "position_ids": positions}

        model = build_tiny("llama")
        model.register_forward_pre_hook(through_python, with_kwargs=True)
        assert "does not give the same bits" in self.rejected(model, TapeGraph)
        assert runner_of(model, RerunGraph).graphed

    @pytest.mark.parametrize("stale", ["cu_seq_q", "seqused_k", "block_table"])
    def test_a_kernel_that_looks_at_its_numbers_is_noticed(self, stale: str) -> None:
        plain = StaticVarlen()
        names = ("query", "key", "value", "cu_seq_q", "cu_seq_k", "max_q", "max_k")

        def attend(*given: Any, **options: Any) -> torch.Tensor:
            options |= zip(names, given, strict=True)
            options[stale] = torch.from_numpy(options[stale].numpy().copy())
            return plain(**options)

        assert "does not give the same bits" in self.rejected("llama", TapeGraph, attend=attend)

    def test_a_kernel_that_padding_puts_off_is_noticed(self) -> None:
        plain = StaticVarlen()

        def attend(*given: Any, seqused_k: torch.Tensor, **options: Any) -> torch.Tensor:
            if not bool((seqused_k > 0).all()):
                options["scale"] *= 1.5
            return plain(*given, seqused_k=seqused_k, **options)

        why = self.rejected("llama", RerunGraph, attend=attend)
        assert "padded to" in why
        assert "are off by" in why

    def test_a_layer_that_attends_otherwise_is_noticed(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def without_window(kv: LayerKV, rule: ScoreRule) -> bool:
            return rule.window is None

        monkeypatch.setattr(VarlenAttention, "fits", staticmethod(without_window))
        assert "does not attend where its keys lie" in self.rejected("gemma3_text", TapeGraph)

    @pytest.mark.parametrize("name", NOT_PAGED)
    def test_models_that_read_no_pages_are_not_even_tried(self, name: str) -> None:
        graphs = Counted()
        runner = runner_of(name, graphs)
        assert not runner.graphed
        assert graphs.made == 0
        assert runner._storage.num_slots == runner.pool.num_blocks * BLOCK_SIZE
        assert runner.forward([SequenceRows(runner.pool.create(), [5], 1)]).shape[0] == 1

    def test_where_memory_is_short_there_are_fewer(self) -> None:
        class Short(TapeGraph):
            left = 3

            def record(self, run: Callable[[], None]) -> None:
                if Short.left:
                    Short.left -= 1
                    raise torch.OutOfMemoryError("CUDA out of memory")
                super().record(run)

        graphs = Counted(Short)
        runner = runner_of("llama", graphs)
        assert runner._graphs is not None
        assert runner._graphs.sizes == [1, 2, 4, 8, 16]
        before = graphs.replays
        actual = run_mixed_batches(runner)
        assert graphs.replays == before + 1  # the others have 40 rows and more
        assert largest_difference(actual, expected_logits(plain_model("llama"))) < TOLERANCE

    def test_where_there_is_none_python_runs_the_model(self) -> None:
        def no_memory() -> Graph:
            raise torch.OutOfMemoryError("CUDA out of memory")

        assert self.rejected("llama", no_memory) == "there is no memory for any"

    def test_a_driver_may_refuse(self) -> None:
        def refuse() -> Graph:
            raise RuntimeError("CUDA error: operation not supported\nCompile with TORCH_USE_...")

        assert self.rejected("llama", refuse) == "CUDA error: operation not supported"

    @pytest.mark.parametrize(("num_blocks", "most"), [(5, 2), (20, 16), (64, 64)])
    def test_a_pool_has_the_sizes_it_has_room_for(self, num_blocks: int, most: int) -> None:
        runner = runner_of("llama", RerunGraph, num_blocks=num_blocks)
        assert runner._graphs is not None
        assert runner._graphs.sizes[-1] == most

    @pytest.mark.parametrize("positions", [14, 20])
    def test_a_model_of_few_positions_has_them_too(self, positions: int) -> None:
        model = build_tiny("gpt2", max_position_embeddings=positions)
        assert runner_of(model, TapeGraph).graphed


class TestWhatIsWanted:
    def test_off_makes_none(self) -> None:
        graphs = Counted()
        runner = runner_of("llama", graphs, compiled=Compile.OFF)
        assert graphs.made == 0
        assert not runner.graphed

    def test_on_has_them_or_does_not_start(self) -> None:
        assert runner_of("llama", TapeGraph, compiled=Compile.ON).graphed

        def refuse() -> Graph:
            raise RuntimeError("no")

        for name, new_graph in (("llama", refuse), ("llama", None), ("gemma2", TapeGraph)):
            with pytest.raises(StartupError, match="--compile on: only models on the CPU kernels"):
                runner_of(name, new_graph, compiled=Compile.ON)


def test_a_fault_in_mid_traffic_costs_graphs_and_no_request() -> None:
    graphs = Counted()
    runner, plain = runner_of(row_wise("llama"), graphs), runner_of(row_wise("llama"), None)
    actual, expected = random_traffic(runner, turns=5), random_traffic(plain, turns=5)
    graphs.fault = RuntimeError("CUDA error: an illegal instruction\nat all")
    with structlog.testing.capture_logs() as logs:
        actual += random_traffic(runner, turns=5)
    expected += random_traffic(plain, turns=5)
    assert rejections(logs) == ["CUDA error: an illegal instruction"]
    assert not runner.graphed
    assert all(map(torch.equal, actual, expected))


class TestCudaGraph:
    """The calls of torch, in order; there is no GPU here."""

    def test_the_cpu_has_none(self) -> None:
        assert graph.find(torch.device("cpu")) is None

    @pytest.fixture
    def said(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """What torch is asked for; a recording that is broken cannot be ended."""
        said: list[str] = []

        class Stream:
            def __init__(self, name: str = "side") -> None:
                self.name = name

            def wait_stream(self, other: Stream) -> None:
                said.append(f"{self.name} waits for {other.name}")

        @contextmanager
        def within(stream: Stream) -> Any:
            said.append(f"on {stream.name}")
            try:
                yield
            finally:
                said.append(f"off {stream.name}")

        @contextmanager
        def recording(graph: object, *, pool: object, stream: Stream, **options: str) -> Any:
            said.append(f"record on {stream.name} with {pool}, {options['capture_error_mode']}")
            try:
                yield
            except ValueError:
                raise RuntimeError("a previous error during capture") from None
            said.append("recorded")

        class Recorded:
            def replay(self) -> None:
                said.append("replay")

        for name, stand_in in {
            "Stream": lambda device: Stream(),
            "stream": within,
            "graph": recording,
            "CUDAGraph": Recorded,
            "device": lambda device: nullcontext(),
            "current_stream": lambda: Stream("usual"),
            "graph_pool_handle": lambda: "pool",
        }.items():
            monkeypatch.setattr(torch.cuda, name, stand_in)
        return said

    def test_it_warms_up_aside_and_records_there(self, said: list[str]) -> None:
        make = graph.find(torch.device("cuda", 0))
        assert make is not None
        one = make()
        one.record(lambda: said.append("run"))
        one.replay()
        assert said == [
            "side waits for usual",
            *("on side", "run", "run", "off side"),
            "usual waits for side",
            "on usual",
            *("record on side with pool, thread_local", "run", "recorded"),
            "off usual",
            "replay",
        ]

    def test_where_it_breaks_the_thread_is_back_and_the_cause_known(self, said: list[str]) -> None:
        def wait() -> None:
            if any(line.startswith("record") for line in said):
                raise ValueError("operation not permitted when stream is capturing")

        make = graph.find(torch.device("cuda", 0))
        assert make is not None
        with pytest.raises(ValueError, match="not permitted"):
            make().record(wait)
        assert said[-1] == "off usual"
