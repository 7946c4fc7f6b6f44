"""transformers' plain `generate`, with the service's noise in place of its own.

`generate` samples by `torch.multinomial(softmax(scores))`, whose random numbers are nobody's
promise. Here that one call is replaced by the choice that the service makes, the highest of
`log p + g(seed, sample, position, token)`. Everything before it, model, processors and stops, is
transformers' own, so a sampled text is as predictable as a greedy one.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from exactness.reference import Reference, own_types
from exactness.running import Request
from outrider_runtime.model.arrays import NUMPY
from outrider_runtime.model.noise import NoiseRow, gumbel_of_all
from parity.configurations import LONGEST_OUTPUT, NOT_TOLD, Text
from transformers import PreTrainedTokenizerFast


class NothingToChoose(Exception):
    """Options contradict each other: no token is left, or one of infinite score."""


class Expected(NamedTuple):
    """One sequence as transformers has it."""

    token_ids: list[int]
    scores: torch.Tensor
    """After all processors, float32 [tokens, vocab]."""
    logits: torch.Tensor
    """Before them, likewise."""


class Oracle:
    """A model folder in transformers.

    Args:
        folder: The model.
        tokenizer: For stop strings.
    """

    def __init__(self, folder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
        self.reference = Reference(folder)
        self._tokenizer = tokenizer

    def sequences(self, request: Request) -> list[Expected]:
        """The sequences of a request, each from a `generate` of its own.

        Raises:
            NothingToChoose: at some point.
        """
        count = request.options.get("num_return_sequences", 1)
        return [self._sequence(request, index) for index in range(count)]

    def text(self, prompt: Sequence[int]) -> Text:
        """What the model makes of a prompt by itself."""
        token_ids = self.reference.greedy(prompt, {"max_new_tokens": LONGEST_OUTPUT})
        pieces = {self._tokenizer.decode(token_id) for token_id in token_ids}
        return Text(prompt, token_ids, sorted(each for each in pieces if "\ufffd" not in each))

    def _sequence(self, request: Request, index: int) -> Expected:
        options: dict[str, Any] = {
            name: value
            for name, value in own_types(request.options).items()
            if name not in {*NOT_TOLD, "num_return_sequences"}
        }
        if "stop_strings" in options:
            options["tokenizer"] = self._tokenizer
        prompt_ids = torch.tensor([list(request.prompt)])
        with _seeded(request.seed or 0, index, len(request.prompt)), _quiet(), torch.no_grad():
            try:
                generated = self.reference.model.generate(
                    prompt_ids,
                    attention_mask=torch.ones_like(prompt_ids),
                    return_dict_in_generate=True,
                    output_scores=True,
                    output_logits=True,
                    **options,
                )
            except ValueError as fault:  # top_h looks at its scores; the others do not
                if "distribution Categorical" not in str(fault):
                    raise
                raise NothingToChoose from fault
        scores, logits = torch.cat(generated.scores), torch.cat(generated.logits)
        if not (scores.amax(-1) > -torch.inf).all():
            raise NothingToChoose
        return Expected(generated.sequences[0, len(request.prompt) :].tolist(), scores, logits)


@contextmanager
def _seeded(seed: int, index: int, length: int) -> Iterator[None]:
    """Puts the service's choice in place of the sampling of one sequence."""
    positions = iter(range(length, 2**32))

    def choose(probabilities: torch.Tensor, num_samples: int) -> torch.Tensor:
        assert probabilities.shape[0] == num_samples == 1
        if not probabilities.isfinite().all():
            raise NothingToChoose
        row = NoiseRow(seed, index, next(positions))
        noise = torch.as_tensor(gumbel_of_all(NUMPY, probabilities.shape[-1], [row]))
        return (probabilities.double().log() + noise).argmax(-1, keepdim=True)

    with mock.patch.object(torch, "multinomial", choose):
        yield


@contextmanager
def _quiet() -> Iterator[None]:
    """transformers warns of options that do not fit together, and goes on."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
