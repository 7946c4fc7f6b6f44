"""On kernels of our own, in float32, what a draft cannot change are the bits, not tokens alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from engine.compiler import needs_compiler
from exactness.loop_thread import ServiceThreads
from exactness.running import (
    PLAIN,
    SYNCHRONOUS,
    RunningTarget,
    accepted_by_drafter,
    draft_service,
    model_drafter,
    target,
)
from exactness.test_greedy_parity import shipped_prompts
from outrider_client import Completion, GenerationConfig, SpeculationConfig
from outrider_demo import DRAFT_DIR, TARGET_DIR
from outrider_runtime.model.compiled.mode import Compile
from outrider_runtime.model.kernels.mode import CpuKernels, Quantization

pytestmark = [needs_compiler, pytest.mark.timeout(400)]  # the first time something is compiled

OPTIONS: list[dict[str, Any]] = [
    {},
    {"do_sample": True},
    {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "repetition_penalty": 1.1},
    {"no_repeat_ngram_size": 3, "num_assistant_tokens": 9},
]
DRAFTED = [
    SYNCHRONOUS,
    SpeculationConfig(method="prompt-lookup"),
    SpeculationConfig(run_ahead=4),
    SpeculationConfig(method="combined"),
]


NONE, INT8 = Quantization.NONE, Quantization.INT8


@pytest.fixture(
    scope="module",
    params=[
        (Compile.OFF, NONE, NONE),
        (Compile.ON, NONE, NONE),
        (Compile.OFF, NONE, INT8),
        (Compile.OFF, INT8, INT8),
    ],
    ids=["python", "compiled", "int8-draft", "int8-both"],
)
def on_kernels(request: pytest.FixtureRequest, threads: ServiceThreads) -> Iterator[RunningTarget]:
    """The shipped pair; its cache is too small for all requests of a test at once."""
    compiled, of_target, of_draft = request.param
    draft_model = model_drafter(DRAFT_DIR, dtype="float32", quantization=of_draft)
    with (
        draft_service(threads, draft_model) as drafter,
        target(
            threads,
            TARGET_DIR,
            drafts=[drafter.address],
            dtype="float32",
            cpu_kernels=CpuKernels.ON,
            quantization=of_target,
            compile=compiled,
            kv_cache_tokens=320,
            max_model_len=160,
        ) as running,
    ):
        served_as = "float32" if of_target is NONE else "int8"
        assert running.client.model_info().dtype == served_as
        yield running


def generate(
    running: RunningTarget, speculations: Sequence[SpeculationConfig], *, streams: int
) -> list[Completion]:
    """Every prompt with options of its own, and a seed."""
    prompts = shipped_prompts(8)

    def one(number: int) -> Completion:
        config = GenerationConfig(max_new_tokens=40, **OPTIONS[number % len(OPTIONS)])
        return running.client.generate(
            prompts[number],
            config,
            seed=number,
            log_probs=3,
            speculation=speculations[number % len(speculations)],
        )

    with ThreadPoolExecutor(streams) as pool:
        return list(pool.map(one, range(len(prompts))))


def test_log_probabilities_are_equal_to_the_bit_with_any_draft_in_any_company(
    on_kernels: RunningTarget,
) -> None:
    alone = generate(on_kernels, [PLAIN], streams=1)
    preempted_before = on_kernels.client.loads().num_preemptions
    for turn in range(len(DRAFTED)):
        together = generate(on_kernels, DRAFTED[turn:] + DRAFTED[:turn], streams=8)
        for plain, drafted in zip(alone, together, strict=True):
            assert drafted.token_ids == plain.token_ids
            assert drafted.log_probs == plain.log_probs
        accepted = accepted_by_drafter(together)
        assert accepted["remote"] > 0
        assert accepted["prompt-lookup"] > 0
    assert on_kernels.client.loads().num_preemptions > preempted_before
    on_kernels.assert_nothing_left()
