from __future__ import annotations

import math
import shutil
from collections.abc import Iterator

import pytest
import torch
from engine.compiler import needs_compiler
from engine.mixed_batches import expected_logits, run_mixed_batches
from engine.plain_model import largest_difference, plain_model, ragged_runner, random_ids
from engine.tiny_models import SUPPORTED, build_tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from outrider_runtime.errors import StartupError
from outrider_runtime.model.batch import SequenceRows
from outrider_runtime.model.kernels import library
from outrider_runtime.model.kernels.choice import choose
from outrider_runtime.model.kernels.mode import CpuKernels, Quantization
from outrider_runtime.model.kernels.packed_linear import PackedLinear
from outrider_runtime.model.layer_reading import LayerReading
from outrider_runtime.model.ragged_runner import RaggedRunner

pytestmark = needs_compiler

TOLERANCE = 1e-5
"""Of logits of size 2 to 5, in float32."""


@pytest.fixture(scope="module", autouse=True)
def kernels() -> None:
    library.load()


@pytest.fixture
def fresh_library() -> Iterator[None]:
    library.load.cache_clear()
    yield
    library.load.cache_clear()
    library.load()


def runner_on_kernels(name: str, *, block_size: int = 4) -> RaggedRunner:
    runner = RaggedRunner(
        build_tiny(name), num_blocks=64, block_size=block_size, cpu_kernels=CpuKernels.ON
    )
    assert runner.kernels
    return runner


@pytest.mark.parametrize("name", SUPPORTED)
def test_mixed_batches_give_the_logits_of_one_sequence_at_a_time(name: str) -> None:
    actual = run_mixed_batches(runner_on_kernels(name))
    assert largest_difference(actual, expected_logits(plain_model(name))) < TOLERANCE


@pytest.mark.parametrize("name", ["llama", "mistral", "gpt2"])
def test_a_row_is_the_same_to_the_bit_in_any_company(name: str) -> None:
    alone, company = runner_on_kernels(name), runner_on_kernels(name)
    tokens = random_ids(40)
    handle = alone.pool.create()
    one_by_one = [alone.forward([SequenceRows(handle, [token], 1)]) for token in tokens]
    expected = torch.cat(one_by_one)
    mine, others = company.pool.create(), [company.pool.create() for _ in range(3)]
    parts: list[torch.Tensor] = []
    for count in (7, 1, 5, 2, 16, 6, 3):
        first = sum(len(part) for part in parts)
        own = SequenceRows(mine, tokens[first : first + count], count)
        batch = [SequenceRows(other, random_ids(2 + i), 0) for i, other in enumerate(others)]
        parts.append(company.forward([batch[0], own, *batch[1:]]))
    assert torch.equal(torch.cat(parts), expected)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    rows=st.integers(1, 20),
    inputs=st.integers(1, 90),
    outputs=st.integers(1, 200),
    bias=st.booleans(),
    threads=st.sampled_from([1, 2]),
)
def test_products_of_any_shape(
    rows: int, inputs: int, outputs: int, bias: bool, threads: int
) -> None:
    generator = torch.Generator().manual_seed(rows * 1000 + inputs)
    layer = torch.nn.Linear(inputs, outputs, bias=bias)
    x = torch.randn(1, rows, inputs, generator=generator)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        actual = PackedLinear(layer.weight, layer.bias)(x)
    finally:
        torch.set_num_threads(before)
    expected = layer.double()(x.double())
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() < 1e-5


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("rows", [1, 3, 6, 13, 40])
def test_products_of_one_input_are_those_of_each_alone(rows: int, threads: int) -> None:
    torch.manual_seed(rows)
    ops = torch.ops.outrider
    x, sizes = torch.randn(1, rows, 300), [288, 64, 1, 96]
    packed = [ops.pack_linear(torch.randn(size, 300)) for size in sizes]
    biases = [None, torch.randn(64), torch.randn(1), None]
    integers, scales = zip(*map(ops.pack_linear_int8, packed), strict=True)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        together = ops.packed_linears(x, packed, biases, sizes)
        together_int8 = ops.packed_linears_int8(x, integers, scales, biases, sizes)
    finally:
        torch.set_num_threads(before)
    for i, (own, own_int8) in enumerate(zip(together, together_int8, strict=True)):
        assert own.shape == (1, rows, sizes[i])
        assert torch.equal(own, ops.packed_linear(x, packed[i], biases[i], sizes[i]))
        alone = ops.packed_linear_int8(x, integers[i], scales[i], biases[i], sizes[i])
        assert torch.equal(own_int8, alone)


@pytest.mark.parametrize(("past", "window"), [(0, 0), (1500, 0), (1500, 300), (3, 2)])
@pytest.mark.parametrize("dims", [(64, 64), (20, 13), (128, 64)])
def test_attention_over_scattered_blocks(past: int, window: int, dims: tuple[int, int]) -> None:
    torch.manual_seed(past + window)
    heads, key_heads, rows, block_size = 6, 2, 5, 16
    key_dim, value_dim = dims
    length = past + rows
    num_blocks = math.ceil(length / block_size)
    table = torch.randperm(2 * num_blocks)[:num_blocks]
    storage = torch.randn(2 * num_blocks * block_size, key_heads * (key_dim + value_dim))
    query = 4 * torch.randn(1, heads, rows, key_dim)
    key = torch.randn(1, key_heads, rows, key_dim)
    value = torch.randn(1, key_heads, rows, value_dim)
    positions = torch.arange(length)
    slots = table[positions // block_size] * block_size + positions % block_size
    own = positions[past:]
    actual = torch.ops.outrider.attend(
        query,
        key,
        value,
        storage,
        slots[past:],
        torch.stack([torch.zeros_like(own), own]),
        table[None],
        block_size,
        0.3,
        window,
    )
    split = key_heads * key_dim
    keys = storage[slots, :split].view(length, key_heads, key_dim).transpose(0, 1)
    values = storage[slots, split:].view(length, key_heads, value_dim).transpose(0, 1)
    assert torch.equal(keys[:, past:], key[0])
    hidden = positions > own[:, None]
    if window:
        hidden |= positions <= own[:, None] - window
    scores = query[0].double() @ keys.repeat_interleave(3, 0).double().mT * 0.3
    weights = scores.masked_fill(hidden, -math.inf).softmax(-1)
    expected = (weights @ values.repeat_interleave(3, 0).double()).transpose(0, 1)
    assert (actual[0] - expected).abs().max() < 1e-5


def test_a_key_that_is_hidden_cannot_matter_even_if_it_is_not_a_number() -> None:
    runner = runner_on_kernels("llama")
    first, second = runner.pool.create(), runner.pool.create()
    tokens = random_ids(9)
    expected = runner.forward([SequenceRows(first, tokens, 9)])
    for layer in runner._storage._layers.values():
        free = torch.ones(len(layer.rows), dtype=torch.bool)
        free[runner.pool.slots(first, 0, 9)] = False
        with torch.inference_mode():
            layer.rows[free] = math.nan
    assert torch.equal(runner.forward([SequenceRows(second, tokens, 9)]), expected)


def test_a_model_that_answers_otherwise_on_the_kernels_keeps_its_own_layers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    forward = PackedLinear.forward
    monkeypatch.setattr(PackedLinear, "forward", lambda layer, x: forward(layer, x) * 1.01)
    model = build_tiny("llama")
    runner = RaggedRunner(model, num_blocks=64, block_size=4, cpu_kernels=CpuKernels.AUTO)
    assert not runner.kernels
    assert not any(isinstance(module, PackedLinear) for module in model.modules())
    actual = run_mixed_batches(runner)
    assert largest_difference(actual, expected_logits(plain_model("llama"))) < TOLERANCE


class TestWithoutCompiler:
    @pytest.fixture(autouse=True)
    def no_compiler(self, fresh_library: None, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(shutil, "which", lambda name: None)

    def make(self, mode: CpuKernels) -> RaggedRunner:
        return RaggedRunner(build_tiny("llama"), num_blocks=4, block_size=4, cpu_kernels=mode)

    def test_torchs_own_are_used(self) -> None:
        assert not self.make(CpuKernels.AUTO).kernels

    def test_insisting_is_an_error_that_says_why(self) -> None:
        with pytest.raises(StartupError, match="no C\\+\\+ compiler"):
            self.make(CpuKernels.ON)


@pytest.mark.usefixtures("fresh_library")
def test_a_compiler_that_fails_is_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "_FLAGS", ("--no-such-flag",))
    with pytest.raises(library.KernelsUnavailable, match="no-such-flag"):
        library.load()


def test_parts_of_weights_are_refused_where_they_are_insisted_on() -> None:
    cpu = torch.device("cpu")
    with pytest.raises(StartupError, match="they take whole weights"):
        choose(
            CpuKernels.ON,
            quantization=Quantization.NONE,
            dtype=torch.float32,
            device=cpu,
            sharded=True,
        )
    assert not choose(
        CpuKernels.AUTO,
        quantization=Quantization.NONE,
        dtype=torch.float32,
        device=cpu,
        sharded=True,
    )


def test_other_precisions_are_refused_where_they_are_insisted_on() -> None:
    model = build_tiny("llama", dtype=torch.float64)
    with pytest.raises(StartupError, match="float32 on the CPU"):
        RaggedRunner(model, num_blocks=4, block_size=4, cpu_kernels=CpuKernels.ON)
    auto = RaggedRunner(model, num_blocks=4, block_size=4, cpu_kernels=CpuKernels.AUTO)
    assert not auto.kernels


def test_a_reading_changes_no_bit_and_tells_the_same() -> None:
    """Somebody in the batch asks for hidden states, attention weights and an early exit."""
    runner, tokens = runner_on_kernels("llama"), random_ids(14, seed=1)
    reading = LayerReading(4, hidden_of=range(4), logits_of=[1], weights=True)
    results = []
    for readings in ([], [reading]):
        a, b = runner.pool.create(), runner.pool.create()
        rows = [SequenceRows(a, random_ids(9), 3), SequenceRows(b, tokens, 4, readings)]
        results.append(runner.forward(rows))
    assert torch.equal(*results)
    plain = ragged_runner("llama")
    expected = LayerReading(4, hidden_of=range(4), logits_of=[1], weights=True)
    plain.forward([SequenceRows(plain.pool.create(), tokens, 4, [expected])])
    for layer in range(4):
        assert (
            largest_difference(reading.hidden_states[layer], expected.hidden_states[layer]) < 1e-4
        )
        if layer < 3:
            assert largest_difference(reading.attentions[layer], expected.attentions[layer]) < 1e-5
    assert largest_difference(reading.logits[1], expected.logits[1]) < 1e-4
    early = [
        one.forward([SequenceRows(one.pool.create(), tokens, 2)], num_layers=2)
        for one in (runner, plain)
    ]
    assert largest_difference(*early) < 1e-4
