"""Whether a replay says what was served. Pure: knows nothing of engine, queues or metrics.

Arithmetic in batches of different shapes rounds differently, so where two tokens are all but equal
either may be chosen. Such a near tie is no fault; any other difference is.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import NamedTuple

import numpy as np
from outrider_runtime.model.arrays import NUMPY
from outrider_runtime.model.log_probs import TokenLogProbs
from outrider_runtime.model.noise import NoiseRow, gumbel_of

from outrider_target.engine.events import TokensDecided
from outrider_target.requests.request import FinishReason, GenerationRequest

NUM_TOP = 64
"""Alternatives that a replay tells of each token."""

TOLERANCES = {"float64": 1e-6, "float32": 1e-2, "float16": 0.1, "bfloat16": 0.5}
"""By the model's type: candidates whose scores (log-probability, and noise where one samples)
differ by less are a near tie. A score of 16 to 32 is a multiple of 0.125 in bfloat16."""


class Result(StrEnum):
    """What became of a request that the canary looked at."""

    SAME = "same"
    NEAR_TIE = "near_tie"
    DIFFERENT = "different"
    INCONCLUSIVE = "inconclusive"
    """Nothing was drafted, a mode that cannot be replayed, or a replay that was cut."""
    SKIPPED = "skipped"
    """Too many were waiting."""


class Difference(NamedTuple):
    """Where a sequence of the replay leaves what was served."""

    sequence_index: int
    position: int
    """Of the first different token, from the beginning of the output."""
    near_tie: bool


class Comparison:
    """Token by token, as the replay comes."""

    def __init__(
        self, request: GenerationRequest, served: Sequence[Sequence[int]], *, tolerance: float
    ) -> None:
        """Begin.

        Args:
            request: What was asked.
            served: The generated tokens of each sequence.
            tolerance: See `TOLERANCES`.
        """
        self._request = request
        self._served = served
        self._tolerance = tolerance * _magnified(request)
        self._num_compared = [0] * len(served)
        self._open = set(range(len(served)))
        self._cut = False
        self.differences: list[Difference] = []

    @property
    def settled(self) -> bool:
        """Whether more of the replay would change nothing."""
        return not self._open or self.result is Result.DIFFERENT

    @property
    def result(self) -> Result:
        """What is known by now."""
        if any(not difference.near_tie for difference in self.differences):
            return Result.DIFFERENT
        if self._open or self._cut:
            return Result.INCONCLUSIVE
        return Result.NEAR_TIE if self.differences else Result.SAME

    def take(self, event: TokensDecided) -> None:
        """Compare the next tokens of a sequence."""
        index = event.sequence_index
        if index not in self._open:
            return
        served = self._served[index]
        for token_id, log_probs in zip(event.token_ids, event.log_probs, strict=True):
            position = self._num_compared[index]
            if position == len(served):
                self._differ(index, near_tie=False)
                return
            if token_id != served[position]:
                tie = self._is_near_tie(index, served[position], token_id, log_probs)
                self._differ(index, near_tie=tie)
                return
            self._num_compared[index] += 1
        if event.finish is not None:
            if event.finish.reason in (FinishReason.CANCELLED, FinishReason.TIME):
                self._cut = True
            elif self._num_compared[index] < len(served):
                self._differ(index, near_tie=False)
            self._open.discard(index)

    def _differ(self, index: int, *, near_tie: bool) -> None:
        self.differences.append(Difference(index, self._num_compared[index], near_tie))
        self._open.discard(index)

    def _is_near_tie(
        self, index: int, served_id: int, token_id: int, log_probs: TokenLogProbs
    ) -> bool:
        """Whether rounding may have chosen `served_id` in place of `token_id`.

        Rounding may also move tokens over the edge of what a truncation keeps: what could be that
        is not called a fault.
        """
        parameters = self._request.parameters
        sampling = parameters.do_sample
        # A temperature below 1 enlarges what rounding did to the scores.
        tolerance = self._tolerance / (min(1.0, parameters.temperature) if sampling else 1.0)
        kept = {each.token_id: each.log_prob for each in log_probs.top_processed}
        lowest = min(kept.values(), default=log_probs.processed)
        if served_id not in kept and not sampling and len(kept) < NUM_TOP:
            return False  # it could not be chosen at all
        lead = log_probs.processed - kept.get(served_id, lowest)
        if sampling:
            position = len(self._request.prompt) + self._num_compared[index]
            row = NoiseRow(self._request.seed, index, position)
            own, other = gumbel_of(NUMPY, np.array([[token_id, served_id]]), [row])[0].tolist()
            lead += own - other
        if lead < tolerance:
            return True
        if not parameters.truncations or log_probs.processed - lowest >= tolerance:
            return False
        # The lowest of those kept was chosen: it may not have been kept before,
        # and where another was in its place, that one's own score is as good.
        return (
            served_id in kept or parameters.edits_scores or self._is_as_good(served_id, log_probs)
        )

    def _is_as_good(self, served_id: int, log_probs: TokenLogProbs) -> bool:
        """Whether the model itself all but prefers a token to the chosen one."""
        raw = {each.token_id: each.log_prob for each in log_probs.top_raw}
        best_guess = raw.get(served_id, min(raw.values(), default=log_probs.raw))
        return log_probs.raw - best_guess < self._tolerance


def _magnified(request: GenerationRequest) -> float:
    """How many times larger guidance makes the model's rounding.

    Guidance by s is s of the scores less s - 1 of the negative ones; the rounding of both adds up.
    """
    scale = 1.0 if request.guidance is None else request.guidance.scale
    return max(1.0, abs(scale) + abs(scale - 1.0))
