"""Log-probabilities of chosen tokens, and the most probable alternatives.

Computed for the rows of requests that ask, from the same scores the tokens were chosen from. Knows
nothing of how a token is chosen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

from outrider_runtime.model.arrays import on_device
from outrider_runtime.model.row_group import RowGroup
from outrider_runtime.model.scores import PendingScores


class TokenLogProb(NamedTuple):
    """A token and the natural logarithm of its probability."""

    token_id: int
    log_prob: float


class TokenLogProbs(NamedTuple):
    """What is known of one chosen token."""

    raw: float
    """Log-probability under the model's own scores."""
    processed: float
    """Log-probability after processors, temperature and truncation."""
    score: float
    """Score after all processors, not normalised: what transformers returns as `scores`."""
    top_raw: Sequence[TokenLogProb]
    """The most probable tokens, most probable first."""
    top_processed: Sequence[TokenLogProb]
    """The same after all processors; fewer where fewer can be chosen."""


def token_log_probs(
    logits: torch.Tensor,
    group: RowGroup,
    token_ids: Sequence[int],
    *,
    num_top: int,
    model_logits: torch.Tensor | None = None,
) -> list[TokenLogProbs]:
    """Log-probabilities of the tokens chosen from a group's rows.

    Args:
        logits: [rows of the group, vocab].
        group: whose rows they are.
        token_ids: the chosen token of each row.
        num_top: how many alternatives to list.
        model_logits: the model's own, where tokens are chosen by others: what `raw` is told of.

    Returns:
        One entry a row. Normalised in float64: a vocabulary of 150,000 terms costs float32 digits.
    """
    side = on_device(logits.device)
    pending = PendingScores(logits, [group])
    raw = (logits if model_logits is None else model_logits).double().log_softmax(-1)
    chosen = side.integers(token_ids)[:, None]
    while True:
        scores = pending.scores
        processed = scores.double().log_softmax(-1)
        of_chosen = (column.gather(1, chosen)[:, 0] for column in (raw, processed, scores))
        tops = (one for column in (raw, processed) for one in _top(column, num_top))
        found = side.lists(*of_chosen, *tops, *pending.complete)
        if not pending.finish(*found[7:]):
            columns = zip(*found[:3], _named(*found[3:5]), _named(*found[5:7]), strict=True)
            return [TokenLogProbs(*column) for column in columns]


def _top(log_probs: torch.Tensor, number: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The `number` most probable tokens of each row, and their log-probabilities."""
    found = log_probs.topk(min(number, log_probs.shape[-1]), dim=-1)
    return found.indices, found.values


def _named(
    token_ids: Sequence[Sequence[int]], log_probs: Sequence[Sequence[float]]
) -> list[list[TokenLogProb]]:
    """Without those that cannot be chosen."""
    return [
        [TokenLogProb(t, p) for t, p in zip(tokens, values, strict=True) if p > -math.inf]
        for tokens, values in zip(token_ids, log_probs, strict=True)
    ]
