"""The reference of the engine's tests: the same weights on transformers' own attention."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from engine.tiny_models import VOCAB_SIZE, build_tiny
from outrider_runtime.model.ragged_runner import RaggedRunner
from transformers import PreTrainedModel


class PlainModel:
    """A tiny model that sees one sequence at a time, whole, without a cache."""

    def __init__(self, name: str, *, attention: str = "eager", **overrides: object) -> None:
        self._model: PreTrainedModel = build_tiny(name, **overrides)
        self._model.set_attn_implementation(attention)

    def logits(self, token_ids: Sequence[int], *, last: int | None = None) -> torch.Tensor:
        """Logits [last, vocab] of the last rows; of all rows if `last` is None."""
        with torch.inference_mode():
            ids = torch.tensor([list(token_ids)])
            logits: torch.Tensor = self._model(input_ids=ids, use_cache=False).logits[0]
        return logits if last is None else logits[len(token_ids) - last :]


@cache
def plain_model(name: str) -> PlainModel:
    """The reference of `build_tiny(name)`, made once."""
    return PlainModel(name)


@cache
def _engine_model(name: str) -> PreTrainedModel:
    return build_tiny(name)


def ragged_runner(name: str, *, num_blocks: int = 64, block_size: int = 4) -> RaggedRunner:
    """The engine on `build_tiny(name)`, with a pool of its own."""
    return RaggedRunner(_engine_model(name), num_blocks=num_blocks, block_size=block_size)


def random_ids(count: int, *, seed: int = 0) -> list[int]:
    """Ordinary token ids of the tiny models."""
    generator = torch.Generator().manual_seed(seed)
    ids: list[int] = torch.randint(5, VOCAB_SIZE, (count,), generator=generator).tolist()
    return ids


def largest_difference(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference of two equally shaped tensors; NaN counts as infinite."""
    assert actual.shape == expected.shape
    difference = (actual - expected).abs()
    return float(difference.nan_to_num(nan=float("inf")).max())
