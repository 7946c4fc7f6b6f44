"""A tiny target model, shared by the tests of the rounds."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from engine.tiny_models import build_tiny
from outrider_runtime.model.ragged_runner import RaggedRunner
from transformers import PreTrainedModel

NewRunner = Callable[..., RaggedRunner]


@pytest.fixture(scope="session")
def tiny_model() -> PreTrainedModel:
    """float64: the same row in batches of different shapes then rounds to the same logits."""
    return build_tiny("llama").to(torch.float64)


@pytest.fixture(scope="session")
def new_runner(tiny_model: PreTrainedModel) -> NewRunner:
    """Makes runners on the one model, each with a pool of its own."""

    def make(*, num_blocks: int = 256, block_size: int = 4) -> RaggedRunner:
        return RaggedRunner(tiny_model, num_blocks=num_blocks, block_size=block_size)

    return make
