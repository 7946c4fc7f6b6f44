"""A drafter's draw under a rule that compares probabilities: a token, and what it was drawn from.

Cut to the most probable tokens, round, then draw from exactly what is left (`sparse_distribution`),
with noise that enters nothing else (`Stream.DRAFT`). Knows nothing of trees or acceptance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from outrider_runtime.model.arrays import NUMPY, on_device
from outrider_runtime.model.noise import NoiseRow, Stream, gumbel_of
from outrider_runtime.model.row_group import RowGroup
from outrider_runtime.model.scores import PendingScores
from outrider_runtime.sparse_distribution import MAX_SUPPORT, MAX_WEIGHT, SparseDistribution


class Drawn(NamedTuple):
    """A draft token.

    Attributes:
        token_id: The token.
        log_prob: Log-probability of the *most probable* token of the distribution. Whoever decides
            by it how far a draft goes then decides without a look at the draw, which would bias it.
        distribution: What the token was drawn from.
    """

    token_id: int
    log_prob: float
    distribution: SparseDistribution


def draw_tokens(
    logits: torch.Tensor, groups: Sequence[RowGroup], bases: Sequence[int]
) -> list[Drawn | None]:
    """Draw a token for each row.

    Args:
        logits: [rows, vocab]; not changed.
        groups: Whose rows they are, one row each; they sample.
        bases: Committed length of each sequence.

    Returns:
        The draws; None for a row from which nothing can be drawn.
    """
    pending = PendingScores(logits, groups)
    values, token_ids = _most_probable(pending)
    temperatures = np.array([group.draft_temperature for group in groups])
    rows = [
        NoiseRow(group.seed, group.sample_index, group.first_length, base)
        for group, base in zip(groups, bases, strict=True)
    ]
    with np.errstate(all="ignore"):  # rows without a lawful score are left out below
        ratios = np.exp((values - values[:, :1]) / temperatures[:, None])
        weights = np.rint(ratios * MAX_WEIGHT)
        noisy = np.log(weights) + gumbel_of(NUMPY, token_ids, rows, stream=Stream.DRAFT)
    return [
        _drawn(token_ids[row], weights[row], noisy[row]) if math.isfinite(values[row, 0]) else None
        for row in range(len(rows))
    ]


def _most_probable(pending: PendingScores) -> tuple[np.ndarray, np.ndarray]:
    """Scores, float64, and ids of each row's most probable tokens, the best first.

    All of them go to the host: the target is told them.
    """
    number = min(MAX_SUPPORT, pending.scores.shape[-1])
    side = on_device(pending.scores.device)
    while True:
        best = pending.scores.topk(number)
        values, token_ids, *complete = side.fetch(best.values, best.indices, *pending.complete)
        if not pending.finish(*complete):
            return values, token_ids


def _drawn(token_ids: np.ndarray, weights: np.ndarray, noisy: np.ndarray) -> Drawn:
    kept = weights > 0
    return Drawn(
        int(token_ids[noisy.argmax()]),
        math.log(MAX_WEIGHT / weights.sum()),
        SparseDistribution(token_ids[kept].tolist(), weights[kept].astype(np.int64).tolist()),
    )
