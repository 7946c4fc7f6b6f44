"""A compiled forward gives the bits of the model run in Python, or is not used."""

from __future__ import annotations

import contextlib
import gc
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import structlog
import torch
from engine.compiler import needs_compiler
from engine.plain_model import random_ids
from engine.tiny_models import build_tiny
from outrider_runtime import cpp
from outrider_runtime.errors import StartupError
from outrider_runtime.model.attention import ATTENTION_NAME
from outrider_runtime.model.batch import SequenceRows
from outrider_runtime.model.compiled import choice, compiler, step
from outrider_runtime.model.compiled.joined_products import join_products
from outrider_runtime.model.compiled.mode import Compile
from outrider_runtime.model.compiled.recipe import Recipe
from outrider_runtime.model.kernels import library
from outrider_runtime.model.kernels.mode import CpuKernels, Quantization
from outrider_runtime.model.kernels.replacement import Replacement
from outrider_runtime.model.layer_reading import LayerReading
from outrider_runtime.model.ragged_runner import RaggedRunner
from transformers import PreTrainedModel

pytestmark = [needs_compiler, pytest.mark.timeout(400)]  # the first time something is compiled


def runner_of(name: str, compiled: Compile) -> RaggedRunner:
    return RaggedRunner(
        build_tiny(name),
        num_blocks=64,
        block_size=4,
        cpu_kernels=CpuKernels.ON,
        compiled=compiled,
    )


@pytest.fixture(scope="module", autouse=True)
def kernels() -> None:
    """Loaded before anything takes the place of the cache and of processes."""
    library.load()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache in place of the user's."""
    monkeypatch.setattr(cpp, "cache_folder", lambda name: tmp_path)
    return tmp_path


@pytest.fixture
def quick_workshop(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Its process does what is put here in place of compiling: code that finds PACKAGE."""
    code = ["pass"]

    class Quick(subprocess.Popen[bytes]):
        def __init__(self, command: list[str], **options: object) -> None:
            begin = f"from pathlib import Path; PACKAGE = Path({command[-1]!r}); "
            quick = [command[0], "-c", begin + code[0]]
            super().__init__(quick, **options)  # type: ignore[call-overload]  # as they come

    monkeypatch.setattr(subprocess, "Popen", Quick)
    return code


def compiled_llama() -> tuple[PreTrainedModel, Recipe]:
    """A model on the kernels, and the recipe of its compiled forward, which is there."""
    model = build_tiny("llama")
    runner = RaggedRunner(
        model, num_blocks=8, block_size=4, cpu_kernels=CpuKernels.ON, compiled=Compile.ON
    )
    widths = [rows.shape[1] for rows in runner._storage.layers]
    return model, Recipe.of(model, quantization=Quantization.NONE, block_size=4, kv_widths=widths)


def forward_once(runner: RaggedRunner) -> None:
    handle = runner.pool.create()
    runner.forward([SequenceRows(handle, [3], 1)])
    runner.pool.free(handle)


def random_batches(
    runner: RaggedRunner, *, reading: bool = False, number: int = 12
) -> list[torch.Tensor]:
    """Logits of ragged batches of three sequences that grow, roll back and share."""
    choose = random.Random(5)
    handles = [runner.pool.create() for _ in range(3)]
    logits: list[torch.Tensor] = []
    for turn in range(number):
        batch = []
        for handle in choose.sample(handles, choose.randint(1, 3)):
            length = runner.pool.length(handle)
            if length > 20:
                runner.pool.truncate(handle, choose.randint(1, length))
            count = choose.choice([1, 1, 2, 6, 13])
            readings = [LayerReading(1, hidden_of=[1])] if reading and turn % 2 else []
            tokens = [choose.randrange(97) for _ in range(count)]
            batch.append(SequenceRows(handle, tokens, choose.choice([0, 1, count]), readings))
        logits.append(runner.forward(batch))
    return logits


@pytest.mark.parametrize(
    "name",
    [
        "llama",
        *[
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("qwen3", "gpt2", "mistral", "gemma3_text", "mixtral", "phi3")
        ],
    ],
)
def test_it_gives_the_bits_of_the_model_in_python_and_takes_turns_with_it(name: str) -> None:
    compiled = runner_of(name, Compile.ON)
    assert compiled.compiled
    expected = random_batches(runner_of(name, Compile.OFF))
    for reading in (False, True):  # where layers are read, Python runs the model
        actual = random_batches(compiled, reading=reading)
        assert all(map(torch.equal, actual, expected))


def test_products_of_one_input_are_one_operator() -> None:
    model = build_tiny("llama")
    assert Replacement(model)
    widths = [rows.shape[1] for rows in runner_of("llama", Compile.OFF)._storage.layers]
    model.set_attn_implementation(ATTENTION_NAME)
    program = compiler._trace(model.eval(), Recipe("", Quantization.NONE, 4, widths, {}))

    def calls(name: str) -> int:
        return sum(name == str(node.target) for node in program.graph_module.graph.nodes)

    assert calls("outrider.packed_linear.default") == 7 * len(widths) + 1
    join_products(program)
    assert calls("outrider.packed_linear.default") == 2 * len(widths) + 1  # o, down; the head
    assert calls("outrider.packed_linears.default") == 2 * len(widths)  # q, k, v; gate, up


def test_a_row_is_the_same_to_the_bit_in_any_company() -> None:
    runner = runner_of("llama", Compile.ON)
    tokens = random_ids(24)
    alone, among = runner.pool.create(), runner.pool.create()
    expected = torch.cat([runner.forward([SequenceRows(alone, [one], 1)]) for one in tokens])
    parts: list[torch.Tensor] = []
    for count in (7, 1, 5, 2, 9):
        first = sum(map(len, parts))
        others = [SequenceRows(runner.pool.create(), random_ids(2 + i), 0) for i in range(4)]
        own = SequenceRows(among, tokens[first : first + count], count)
        parts.append(runner.forward([others[0], own, *others[1:]]))
        for other in others:
            runner.pool.free(other.handle)
    assert torch.equal(torch.cat(parts), expected)


def test_other_threads_run_meanwhile() -> None:
    """Else no draft would arrive while the target verifies."""
    runner = runner_of("llama", Compile.ON)
    stamps: list[float] = []
    done = threading.Event()

    def stamp() -> None:
        while not done.is_set():
            stamps.append(time.perf_counter())

    other = threading.Thread(target=stamp)
    other.start()
    try:
        assert any(stamped_within_a_forward(runner, stamps) for _ in range(300))
    finally:
        done.set()
        other.join()


def stamped_within_a_forward(runner: RaggedRunner, stamps: list[float]) -> bool:
    handles = [runner.pool.create() for _ in range(2)]
    first = len(stamps)
    began = time.perf_counter()
    runner.forward([SequenceRows(handle, random_ids(100), 100) for handle in handles])
    took = time.perf_counter() - began
    for handle in handles:
        runner.pool.free(handle)
    # Not at its ends, which are Python's.
    inside = began + 0.3 * took, began + 0.7 * took
    return any(inside[0] < one < inside[1] for one in stamps[first:])


def test_other_bits_are_not_used_and_not_compiled_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, compiled = compiled_llama()
    package = compiled.place.read_bytes()
    monkeypatch.setattr(cpp, "cache_folder", lambda name: tmp_path)
    compiled.place.write_bytes(package)
    with structlog.testing.capture_logs() as logs:
        found = choice.StepChoice(model, compiled, Compile.AUTO, proves_right=lambda _: False)
        assert found.step is None
        again = choice.StepChoice(model, compiled, Compile.AUTO, proves_right=lambda _: True)
        assert again.step is None
    assert [log["event"] for log in logs] == ["forward_rejected", "forward_not_compiled"]
    assert all("same bits" in log["why"] for log in logs)
    assert not compiled.place.exists()


def test_a_model_of_another_shape_does_not_take_it() -> None:
    _, compiled = compiled_llama()
    with pytest.raises(step.UnusableStep, match="the model has no"):
        step.CompiledStep(compiled.place, build_tiny("gpt2"))


def test_weights_are_not_part_of_it_but_the_shape_is(cache: Path) -> None:
    def place(name: str, **options: int) -> Path:
        model = build_tiny(name, **options)
        recipe = Recipe.of(model, quantization=Quantization.NONE, block_size=4, kv_widths=[64] * 3)
        return recipe.place

    assert place("llama") == place("llama", seed=1)
    assert place("llama") != place("llama", num_hidden_layers=2)
    assert place("llama") != place("mistral")


def test_compiling_begins_once_there_is_work_and_python_serves_meanwhile(
    cache: Path, quick_workshop: list[str]
) -> None:
    quick_workshop[0] = "import time; time.sleep(60)"
    runner = runner_of("llama", Compile.AUTO)
    for _ in range(choice._FORWARDS_BEFORE):
        forward_once(runner)
    assert not list(cache.iterdir())
    forward_once(runner)
    (making,) = cache.iterdir()
    assert runner._step_choice is not None
    assert runner._step_choice._workshop is not None
    process = runner._step_choice._workshop._process
    assert process.poll() is None
    forward_once(runner)
    assert not runner.compiled
    del runner
    gc.collect()
    assert process.poll() is not None
    assert not making.exists()


def test_compiling_ends_with_the_service_however_that_ends() -> None:
    code = (
        "import subprocess, sys; "
        "from outrider_runtime.model.compiled.workshop import end_with_the_workshop as watch; "
        "watch(); subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])"
    )
    compiling = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, start_new_session=True
    )
    assert compiling.stdin is not None
    with pytest.raises(subprocess.TimeoutExpired):
        compiling.wait(0.5)
    compiling.stdin.close()  # as the system does when a process is gone
    assert compiling.wait(60) == -signal.SIGKILL
    with contextlib.suppress(
        ProcessLookupError
    ):  # its whole group; the test's time limit ends this
        while True:
            os.killpg(compiling.pid, 0)
            time.sleep(0.01)


def test_what_a_killed_service_left_is_removed(cache: Path, quick_workshop: list[str]) -> None:
    old, new = cache / "making-old", cache / "making-new"
    for folder in (old, new):
        folder.mkdir()
    os.utime(old, (0, 0))
    with pytest.raises(StartupError):
        runner_of("llama", Compile.ON)
    assert not old.exists()
    assert new.exists()


@pytest.mark.parametrize(
    "code", ["raise ValueError('no such operator')", "PACKAGE.write_bytes(b'no package')", "pass"]
)
def test_where_compiling_fails_python_goes_on(
    cache: Path, quick_workshop: list[str], code: str
) -> None:
    quick_workshop[0] = code
    with (
        structlog.testing.capture_logs() as logs,
        pytest.raises(StartupError, match="--compile on: the model cannot be compiled"),
    ):
        runner_of("llama", Compile.ON)
    (rejected,) = [log for log in logs if log["event"] == "forward_rejected"]
    assert "ValueError" not in code or "no such operator" in rejected["why"]
    assert not list(cache.glob("making-*"))


def test_only_models_on_the_kernels_are_compiled() -> None:
    with pytest.raises(StartupError, match="--compile on: only models on the CPU kernels"):
        RaggedRunner(build_tiny("llama"), num_blocks=8, block_size=4, compiled=Compile.ON)
