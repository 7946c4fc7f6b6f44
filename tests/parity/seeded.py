"""The service's choices in place of transformers' random ones.

`generate` samples by `torch.multinomial(softmax(scores))`, whose random numbers are nobody's
promise. Here that one call is replaced by the choice that the service makes, the highest of
`log p + g(seed, sample, position, token)`. Everything before it, model, processors and stops, is
transformers' own, so a sampled text is as predictable as a greedy one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from outrider_runtime.model.arrays import NUMPY
from outrider_runtime.model.noise import NoiseRow, gumbel_of_all
from transformers import GenerationMixin


class NothingToChoose(Exception):
    """Options contradict each other: no token is left, or one of infinite score."""


@contextmanager
def seeded(seed: int, index: int, length: int) -> Iterator[None]:
    """One sequence, without beams.

    Args:
        seed: The request's.
        index: Which of its sequences.
        length: Of the prompt.

    Raises:
        NothingToChoose: when no token is possible.
    """
    positions = iter(range(length, 2**32))

    def choose(probabilities: torch.Tensor, num_samples: int) -> torch.Tensor:
        assert probabilities.shape[0] == num_samples == 1
        if not probabilities.isfinite().all():
            raise NothingToChoose
        row = NoiseRow(seed, index, next(positions))
        keys = probabilities.double().log() + _noise(probabilities.shape[-1], row)
        return keys.argmax(-1, keepdim=True)

    with mock.patch.object(torch, "multinomial", choose):
        yield


@contextmanager
def seeded_beams(seed: int) -> Iterator[None]:
    """Beams; those of one search draw without replacement.

    The probabilities of what is hopeless are 0 in float32, and `torch.multinomial` takes any of
    them when nothing else is left. So here their logarithms are seen, from before the softmax.

    Raises:
        NothingToChoose: when no continuation is possible.
    """
    original = GenerationMixin._get_top_k_continuations

    def continuations(self: Any, **step: Any) -> Any:
        totals, num_beams = step["accumulated_log_probs"], step["num_beams"]
        if not totals.max() > -torch.inf:
            raise NothingToChoose

        def draw(probabilities: torch.Tensor, num_samples: int) -> torch.Tensor:
            rows = [NoiseRow(seed, beam, step["cur_len"]) for beam in range(num_beams)]
            noise = _noise(totals.shape[-1] // num_beams, *rows)
            keys: torch.Tensor = totals.double() + noise.flatten()
            return keys.topk(num_samples).indices

        with mock.patch.object(torch, "multinomial", draw):
            return original(self, **step)

    with mock.patch.object(GenerationMixin, "_get_top_k_continuations", continuations):
        yield


def _noise(vocab_size: int, *rows: NoiseRow) -> torch.Tensor:
    """Float64 [rows, vocab]."""
    return torch.as_tensor(gumbel_of_all(NUMPY, vocab_size, list(rows)))
