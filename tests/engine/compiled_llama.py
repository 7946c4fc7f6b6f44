"""The tiny llama with its forward compiled."""

from __future__ import annotations

from engine.tiny_models import build_tiny
from outrider_runtime.model.compiled.mode import Compile
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
