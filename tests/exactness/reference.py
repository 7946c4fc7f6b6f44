"""transformers' own `generate`, as the reference: one prompt at a time, eager attention."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import numpy.typing as npt
import torch
import transformers
from transformers import (
    AutoModelForCausalLM,
    PreTrainedTokenizerFast,
    SynthIDTextWatermarkingConfig,
    WatermarkingConfig,
)
from transformers.generation import candidate_generator

DTYPE = torch.float64


class Round(NamedTuple):
    """One round of assisted generation."""

    num_candidates: int
    num_matches: int


class Assisted(NamedTuple):
    """What assisted generation made of a prompt."""

    token_ids: list[int]
    rounds: list[Round]
    threshold: float
    """The confidence threshold in the end."""


def roc_curve(
    labels: Sequence[int], scores: Sequence[float]
) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]:
    """False and true positive rates at each score as threshold: all that is used of scikit-learn's.

    It leaves out points on straight lines, none of which is the first of the cheapest.
    """
    positive, probability = np.array(labels, dtype=bool), np.array(scores)
    thresholds = np.unique(probability)[::-1]
    proposed = probability[None, :] >= thresholds[:, None]  # [thresholds, samples]
    return (
        np.r_[0.0, proposed[:, ~positive].mean(axis=1)],
        np.r_[0.0, proposed[:, positive].mean(axis=1)],
        np.r_[np.inf, thresholds],
    )


METRICS = mock.Mock(roc_curve=roc_curve)


class Reference:
    """A model folder in transformers.

    Args:
        folder: The model.
        dtype: As the services have it.
    """

    def __init__(self, folder: Path, *, dtype: torch.dtype = DTYPE) -> None:
        transformers.logging.disable_progress_bar()
        transformers.logging.set_verbosity_error()
        self.model: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            attn_implementation="eager",
            experts_implementation="eager",
            local_files_only=True,
        ).eval()

    def greedy(
        self,
        prompt: Sequence[int],
        options: Mapping[str, Any],
        tokenizer: PreTrainedTokenizerFast | None = None,
    ) -> list[int]:
        """The new tokens of plain greedy decoding."""
        return self._generate(prompt, options, tokenizer=tokenizer)

    def next_logits(self, token_ids: Sequence[int]) -> list[float]:
        """The model's logits for the token that follows."""
        with torch.no_grad():
            logits: list[float] = self.model(torch.tensor([list(token_ids)])).logits[0, -1].tolist()
        return logits

    def assisted(
        self,
        assistant: Reference,
        prompt: Sequence[int],
        options: Mapping[str, Any],
        *,
        num_assistant_tokens: int,
        schedule: str,
        threshold: float,
    ) -> Assisted:
        """Greedy assisted generation, and its rounds.

        transformers takes the window, its schedule and the threshold from the assistant, whatever
        the request says.
        """
        rounds: list[Round] = []
        thresholds = [threshold]
        generator = candidate_generator.AssistedCandidateGenerator
        original = generator.update_candidate_strategy

        def spy(self: Any, input_ids: Any, scores: Any, num_matches: Any) -> None:
            rounds.append(Round(scores.shape[1] - 1, int(num_matches)))
            original(self, input_ids, scores, num_matches)
            thresholds.append(float(self.generation_config.assistant_confidence_threshold))

        settings: dict[str, Any] = {
            "num_assistant_tokens": num_assistant_tokens,
            "num_assistant_tokens_schedule": schedule,
            "assistant_confidence_threshold": threshold,
        }
        with (
            mock.patch.object(generator, "update_candidate_strategy", spy),
            # With scikit-learn at hand transformers moves the threshold as it goes.
            mock.patch.object(candidate_generator, "is_sklearn_available", return_value=True),
            mock.patch.dict(sys.modules, {"sklearn": mock.Mock(), "sklearn.metrics": METRICS}),
            mock.patch.multiple(assistant.model.generation_config, **settings),
        ):
            token_ids = self._generate(prompt, options, assistant_model=assistant.model)
        return Assisted(token_ids, rounds, thresholds[-1])

    def looked_up(
        self, prompt: Sequence[int], options: Mapping[str, Any]
    ) -> tuple[list[int], list[Round]]:
        """Greedy decoding with transformers' own prompt lookup, and its rounds."""
        rounds: list[Round] = []

        def spy(self: Any, input_ids: Any, scores: Any, num_matches: Any) -> None:
            rounds.append(Round(scores.shape[1] - 1, int(num_matches)))

        generator = candidate_generator.PromptLookupCandidateGenerator
        with mock.patch.object(generator, "update_candidate_strategy", spy):
            return self._generate(prompt, options), rounds

    def _generate(
        self, prompt: Sequence[int], options: Mapping[str, Any], **extras: Any
    ) -> list[int]:
        prompt_ids = torch.tensor([list(prompt)])
        with torch.no_grad():
            generated = self.model.generate(
                prompt_ids,
                attention_mask=torch.ones_like(prompt_ids),
                do_sample=False,
                **own_types(options),
                **extras,
            )
        token_ids: list[int] = generated[0, len(prompt) :].tolist()
        return token_ids


def own_types(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options with a watermark as the object that `generate` wants."""
    mark = options.get("watermarking_config")
    if mark is None:
        return dict(options)
    kind: Any = SynthIDTextWatermarkingConfig if "ngram_len" in mark else WatermarkingConfig
    return {**options, "watermarking_config": kind(**mark)}
