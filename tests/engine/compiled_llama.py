"""The tiny llama with its forward compiled."""

from __future__ import annotations

import math
from typing import Any

import pytest
from engine.tiny_models import build_tiny
from outrider_runtime.model.compiled.mode import Compile
from outrider_runtime.model.compiled.step import CompiledStep
from outrider_runtime.model.kernels.mode import CpuKernels
from outrider_runtime.model.ragged_runner import RaggedRunner


def compiled_llama_runner(*, num_blocks: int = 64) -> RaggedRunner:
    """A runner whose forward is one program, with a pool of its own."""
    return RaggedRunner(
        build_tiny("llama"),
        num_blocks=num_blocks,
        block_size=4,
        cpu_kernels=CpuKernels.ON,
        compiled=Compile.ON,
    )


def spoil_scores(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Make a score of several steps in one go no number.

    Returns:
        How many steps each call did, as they are done.
    """
    calls: list[int] = []

    def spoilt(self: CompiledStep, *inputs: Any) -> Any:
        token_ids, scores, log_probs = run_greedily(self, *inputs)
        calls.append(len(token_ids))
        scores[-1, -1] = math.nan
        return token_ids, scores, log_probs

    run_greedily = CompiledStep.run_greedily
    monkeypatch.setattr(CompiledStep, "run_greedily", spoilt)
    return calls
