"""How much a candidate repeats its context: the penalty of contrastive search.

Source: Su et al. 2022, "A Contrastive Framework for Neural Text Generation" (arXiv:2202.06417),
equation 5, as transformers 4.55 computes it.
"""

from __future__ import annotations

import torch


def directions(hidden: torch.Tensor) -> torch.Tensor:
    """Hidden states [rows, hidden size] as vectors of length 1, in float32 or better."""
    precise = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
    return torch.nn.functional.normalize(precise, dim=-1, eps=0.0)


def contrastive_scores(
    probabilities: torch.Tensor,
    candidates: torch.Tensor,
    context: torch.Tensor,
    *,
    penalty_alpha: float,
) -> torch.Tensor:
    """The score of each candidate; the highest is to be chosen.

    Args:
        probabilities: [candidates].
        candidates: Their directions, [candidates, hidden size].
        context: Those of every token before, [tokens, hidden size].
        penalty_alpha: Weight of the penalty, against that of the probability.

    Returns:
        [candidates]; minus infinity where the probability is 0.
    """
    penalty = (candidates @ context.T).amax(-1)
    scores = (1 - penalty_alpha) * probabilities - penalty_alpha * penalty
    return scores.masked_fill(probabilities == 0, -torch.inf)
