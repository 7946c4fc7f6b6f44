"""Contrasting layers: what the last layer knows and an earlier one does not yet (DoLa).

Source: Chuang et al. 2023, "DoLa: Decoding by Contrasting Layers Improves Factuality in Large
Language Models" (arXiv:2309.03883), as transformers 4.55 computes it. A row's result depends on
that row alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

_RELATIVE_TOP = 0.1
"""Tokens less probable than this share of the most probable one are not chosen."""


def contrast_layers(final: torch.Tensor, premature: Sequence[torch.Tensor]) -> torch.Tensor:
    """The scores of the final layer over those of the premature layer that differs the most.

    Args:
        final: [rows, vocab], the model's own logits.
        premature: Of each candidate layer the logits [rows, vocab]; at least one.

    Returns:
        [rows, vocab] in the type of `final`: for tokens that are probable enough the difference of
        the log-probabilities, for the others minus infinity.
    """
    mature = final.log_softmax(-1)
    candidates = torch.stack([logits.to(final.dtype) for logits in premature]).log_softmax(-1)
    base = candidates[0]
    if len(premature) > 1:
        chosen = _divergence(mature, candidates).argmax(0)  # [rows]
        base = candidates[chosen, torch.arange(len(final), device=final.device)]
    threshold = mature.amax(-1, keepdim=True) + math.log(_RELATIVE_TOP)
    return (mature - base).masked_fill(mature < threshold, -math.inf)


def _divergence(mature: torch.Tensor, candidates: torch.Tensor) -> torch.Tensor:
    """How far each candidate is from the mature distribution: [candidates, rows].

    The paper's Jensen-Shannon divergence with the mean as the distribution that the terms are
    weighted by, which is how transformers has it.
    """
    mean = 0.5 * (mature.exp() + candidates.exp())
    log_mean = mean.log()
    # Where a probability underflows to 0 its term is 0.
    terms = torch.where(mean > 0, mean * (2 * log_mean - mature - candidates), 0.0)
    return terms.mean(-1)
