"""Scores of all continuations of all live beams of a sequence.

As in transformers, processors and warpers see log-probabilities, not logits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from outrider_runtime.model.row_group import NamedProcessor, RowGroup
from outrider_runtime.model.scores import processed_scores
from outrider_runtime.model.selection import InvalidScores
from outrider_runtime.sampling_parameters import SamplingParameters

from outrider_target.decoding.beams.beam import Beam
from outrider_target.decoding.strategy import BranchRows


class BeamRows(NamedTuple):
    """The last token of each branch, and what is guessed to follow it."""

    branches: Sequence[BranchRows]

    @property
    def num_rows(self) -> int:
        """Rows of logits."""
        return sum(rows.num_logits + sum(map(len, rows.others)) for rows in self.branches)


def beam_log_probs(logits: torch.Tensor, wanted: Sequence[BeamRows]) -> list[torch.Tensor]:
    """The selector: each sequence's float32 log-probabilities, [rows, vocab].

    Raises:
        InvalidScores: A row holds a NaN.
    """
    log_probs = logits.float().log_softmax(-1)
    pieces = torch.split(log_probs, [rows.num_rows for rows in wanted])
    if bool(log_probs.isnan().any()):
        index = next(i for i, piece in enumerate(pieces) if bool(piece.isnan().any()))
        raise InvalidScores(index, "the model's scores hold a NaN", options_at_fault=False)
    return list(pieces)


class BeamScores:
    """Raw log-probabilities of a step, and what the request's processors make of them."""

    def __init__(
        self,
        log_probs: torch.Tensor,
        beams: Sequence[Beam],
        parameters: SamplingParameters,
        *,
        num_prompt_tokens: int,
        processors: Sequence[NamedProcessor] = (),
    ) -> None:
        self._processors = processors
        self._log_probs = log_probs
        self._beams = beams
        self._parameters = parameters
        self._num_prompt_tokens = num_prompt_tokens

    def totals(self, beams: range, *, penalties: Mapping[int, float] | None = None) -> torch.Tensor:
        """Scores of the beams' continuations: processed, added to the beams' own.

        Args:
            beams: Which beams.
            penalties: What is taken off the scores of some tokens (group beam search).

        Returns:
            Float32 [len(beams), vocab].
        """
        forms = [self._beams[index].form for index in beams]
        allowed = [None if form is None else form.allowed() for form in forms]
        groups = [
            RowGroup(
                parameters=self._parameters,
                seed=0,
                sample_index=0,
                token_ids=self._beams[index].branch.token_ids,
                num_rows=1,
                num_prompt_tokens=self._num_prompt_tokens,
                allowed=may_follow,
                processors=self._processors,
                penalties=penalties,
            )
            for index, may_follow in zip(beams, allowed, strict=True)
        ]
        processed = processed_scores(self._log_probs[beams.start : beams.stop], groups)
        of_beams = torch.tensor(
            [
                self._beams[index].score if form is None or may_follow is not None else -math.inf
                for index, form, may_follow in zip(beams, forms, allowed, strict=True)
            ]
        )
        return processed + of_beams.to(processed)[:, None]
