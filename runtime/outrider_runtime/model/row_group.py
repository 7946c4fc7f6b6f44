"""The rows of logits that belong to one sequence, and what each of them sees.

Knows nothing of tensors. A round's batch is a list of such groups, in the order of the rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from outrider_runtime.plugins import LogitsProcessor
from outrider_runtime.sampling_parameters import SamplingParameters


class NamedProcessor(NamedTuple):
    """A processor that the request brought, and its name for errors."""

    name: str
    run: LogitsProcessor


class RowGroup(NamedTuple):
    """`num_rows` consecutive rows of one sequence, each one token further than the one before.

    Row i predicts the token at absolute position `first_length + i`, having seen the tokens before
    it: `token_ids[: first_length + i]`.
    """

    parameters: SamplingParameters
    seed: int
    """The request's seed, in [0, 2**64)."""
    sample_index: int
    """Which of the request's returned sequences this is; below 2**24."""
    token_ids: Sequence[int]
    """The whole prefix: prompt, output and the draft tokens under verification. A numpy array or
    `array.array("q")` is read without copying where a processor looks at the history."""
    num_rows: int
    num_prompt_tokens: int
    draft_temperature: float = 1.0
    """Divides the processed scores before the noise, for drafting only: sharpens or flattens a
    drafter so that it agrees more often. 0 takes the highest score, without noise. Without effect
    on greedy groups; a verifier leaves it at 1."""
    allowed: npt.NDArray[np.bool_] | None = None
    """[num_rows, vocab]: which tokens each row may choose. None is all of them."""
    penalties: Mapping[int, float] | None = None
    """What is taken off the scores of some tokens: group beam search's diversity."""
    processors: Sequence[NamedProcessor] = ()
    """What runs on each row's scores after all others and before the warpers."""

    @property
    def edits_scores(self) -> bool:
        """Whether anything but the sampling warpers touches the scores of its rows."""
        return bool(
            self.parameters.edits_scores
            or self.allowed is not None
            or self.processors
            or self.penalties
        )

    @property
    def is_bare(self) -> bool:
        """Whether the model's own highest score is the choice."""
        asks = self.parameters
        touched = asks.watermark is not None or asks.renormalize_logits or self.edits_scores
        return not (asks.do_sample or touched)

    @property
    def first_length(self) -> int:
        """Number of tokens row 0 sees, which is also the position it predicts."""
        return len(self.token_ids) - self.num_rows + 1

    def first(self, count: int) -> RowGroup:
        """Its first rows alone; all of them are the group itself."""
        if count == self.num_rows:
            return self
        return self._replace(
            token_ids=self.token_ids[: self.first_length + count - 1],
            num_rows=count,
            allowed=None if self.allowed is None else self.allowed[:count],
        )


class PlacedGroup(NamedTuple):
    """A group and where its rows lie in the batch."""

    group: RowGroup
    first_row: int
