"""Weights of 8 bits on the kernels: the numbers, the bits, and where it is refused."""

from __future__ import annotations

import math
import shutil
from typing import cast

import pytest
import structlog
import torch
from engine.compiler import needs_compiler
from engine.mixed_batches import expected_logits, run_mixed_batches
from engine.plain_model import PlainModel, largest_difference, random_ids
from engine.test_compiled_forward import random_batches
from engine.tiny_models import build_tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from outrider_runtime.errors import StartupError
from outrider_runtime.model.batch import SequenceRows
from outrider_runtime.model.compiled.mode import Compile
from outrider_runtime.model.compiled.recipe import Recipe
from outrider_runtime.model.kernels import library
from outrider_runtime.model.kernels.int8_linear import Int8Linear
from outrider_runtime.model.kernels.mode import CpuKernels, Quantization
from outrider_runtime.model.kernels.packed_linear import PackedLinear
from outrider_runtime.model.ragged_runner import RaggedRunner
from torch import nn

pytestmark = [needs_compiler, pytest.mark.timeout(400)]  # the first time something is compiled


@pytest.fixture(scope="module", autouse=True)
def kernels() -> None:
    library.load()


def quantized_runner(name: str, compiled: Compile = Compile.OFF) -> RaggedRunner:
    return RaggedRunner(
        build_tiny(name),
        num_blocks=64,
        block_size=4,
        quantization=Quantization.INT8,
        cpu_kernels=CpuKernels.AUTO,
        compiled=compiled,
    )


def int8_of(layer: nn.Linear) -> Int8Linear:
    return Int8Linear(PackedLinear(layer.weight, layer.bias))


def rounded(weight: torch.Tensor) -> torch.Tensor:
    """The weights [outputs, inputs] that 8 bits hold, float64, worked out apart from the kernel."""
    exact = weight.detach().double()
    scales = exact.abs().amax(1, keepdim=True) / 127
    return torch.where(scales > 0, exact / scales, 0.0).round() * scales


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    rows=st.integers(1, 32),
    inputs=st.integers(1, 90),
    outputs=st.integers(1, 200),
    bias=st.booleans(),
    threads=st.sampled_from([1, 2]),
)
def test_products_of_any_shape_are_those_of_the_rounded_weights(
    rows: int, inputs: int, outputs: int, bias: bool, threads: int
) -> None:
    # Always the same weights: one as good as halfway between two integers may become either.
    torch.manual_seed(rows * 1000 + inputs)
    layer = nn.Linear(inputs, outputs, bias=bias)
    x = torch.randn(1, rows, inputs)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        actual = int8_of(layer)(x)
    finally:
        torch.set_num_threads(before)
    expected = x.double() @ rounded(layer.weight).T
    if bias:
        expected += layer.bias.double()
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() < 1e-5


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(1, 1), (17, 31), (64, 96), (200, 77)])
def test_a_row_is_the_same_to_the_bit_among_any_number(shape: tuple[int, int], bias: bool) -> None:
    torch.manual_seed(0)
    outputs, inputs = shape
    layer = int8_of(nn.Linear(inputs, outputs, bias=bias))
    x = torch.randn(32, inputs)
    alone = torch.cat([layer(row[None]) for row in x])
    for count in range(1, 33):
        assert torch.equal(layer(x[:count]), alone[:count])
        assert torch.equal(layer(x[32 - count :]), alone[32 - count :])


def test_outputs_without_weights_and_with_tiny_or_huge_ones_come_out_right() -> None:
    weight = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    weight[0] = 0
    weight[1] *= 1e-40  # no float32 is its inverse
    weight[2] *= 1e30
    weight[3] = 0
    weight[3, 5] = -2
    layer = Int8Linear(PackedLinear(weight, None))
    actual = layer(torch.eye(8))
    assert torch.equal(actual[:, 0], torch.zeros(8))
    assert torch.equal(actual[:, 1], torch.zeros(8))
    assert torch.equal(actual[:, 3], weight[3])
    for output in (2, 4):
        largest = float(weight[output].abs().max())
        assert (actual[:, output] - weight[output]).abs().max() <= largest / 253


def test_a_weight_that_is_not_a_number_is_refused() -> None:
    weight = torch.randn(70, 9)
    weight[66, 3] = math.nan
    with pytest.raises(RuntimeError, match="not a finite number"):
        Int8Linear(PackedLinear(weight, None))


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3_text"])
def test_a_model_answers_as_one_with_rounded_weights(name: str) -> None:
    """On transformers' own layers, whatever they are; embeddings as loaded."""
    reference = PlainModel(name)
    num_rounded = 0
    for module in reference._model.modules():
        if type(module).__name__ not in ("Linear", "Conv1D"):
            continue
        weight = cast("torch.Tensor", module.weight)
        across = type(module).__name__ == "Conv1D"
        new = rounded(weight.T).T if across else rounded(weight)
        module.weight = nn.Parameter(new.float())  # not that of embeddings that are tied to it
        num_rounded += 1
    with structlog.testing.capture_logs() as logs:
        runner = quantized_runner(name)
    (log,) = [log for log in logs if log["event"] == "weights_quantized"]
    assert log["layers"] == num_rounded > 0
    assert 0 < log["logits_off"] < 0.2
    assert runner.weight_format == "int8"
    actual = run_mixed_batches(runner)
    assert largest_difference(actual, expected_logits(reference)) < 1e-4
    assert largest_difference(actual, expected_logits(PlainModel(name))) > 1e-3


def test_weights_take_a_quarter_of_the_memory() -> None:
    layer = PackedLinear(torch.randn(512, 512), None)
    quantized = Int8Linear(layer)
    sizes = [sum(part.nbytes for part in each.buffers()) for each in (layer, quantized)]
    assert sizes[1] < 0.26 * sizes[0]


def test_a_row_of_a_model_is_the_same_to_the_bit_in_any_company() -> None:
    runner = quantized_runner("llama")
    tokens = random_ids(40)
    alone, mine, other = (runner.pool.create() for _ in range(3))
    expected = torch.cat([runner.forward([SequenceRows(alone, [one], 1)]) for one in tokens])
    parts: list[torch.Tensor] = []
    for count in (7, 1, 5, 2, 16, 6, 3):
        first = sum(len(part) for part in parts)
        own = SequenceRows(mine, tokens[first : first + count], count)
        parts.append(runner.forward([SequenceRows(other, random_ids(3), 0), own]))
    assert torch.equal(torch.cat(parts), expected)


def test_compiled_it_gives_the_same_bits() -> None:
    compiled = quantized_runner("llama", Compile.ON)
    assert compiled.compiled
    expected = random_batches(quantized_runner("llama"))
    assert all(map(torch.equal, random_batches(compiled), expected))


def test_a_compiled_forward_is_of_one_weight_format() -> None:
    def place(quantization: Quantization) -> object:
        model = build_tiny("llama")
        return Recipe.of(model, quantization=quantization, block_size=4, kv_widths=[64] * 3).place

    assert place(Quantization.INT8) != place(Quantization.NONE)


class TestWhereItCannotBe:
    def refused(
        self,
        why: str,
        *,
        dtype: torch.dtype = torch.float32,
        cpu_kernels: CpuKernels = CpuKernels.AUTO,
    ) -> None:
        with pytest.raises(StartupError, match=f"--quantization int8: .*{why}"):
            RaggedRunner(
                build_tiny("llama", dtype=dtype),
                num_blocks=4,
                block_size=4,
                quantization=Quantization.INT8,
                cpu_kernels=cpu_kernels,
            )

    def test_kernels_that_are_off_are_named(self) -> None:
        self.refused("--cpu-kernels", cpu_kernels=CpuKernels.OFF)

    def test_another_precision_is_named(self) -> None:
        self.refused("float32 on the CPU", dtype=torch.float64)

    def test_a_missing_compiler_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        library.load.cache_clear()
        with monkeypatch.context() as patch:
            patch.setattr(shutil, "which", lambda name: None)
            self.refused("no C\\+\\+ compiler")
        library.load.cache_clear()
        library.load()

    def test_a_model_that_answers_otherwise_on_the_kernels_is_told(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        forward = PackedLinear.forward
        monkeypatch.setattr(PackedLinear, "forward", lambda layer, x: forward(layer, x) * 1.01)
        self.refused("does not run on the CPU kernels: its logits are off")
