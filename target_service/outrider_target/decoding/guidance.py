"""Classifier-free guidance as a strategy: scores pushed away from those of a negative prompt.

The negative prompt with the generated tokens behind it is a second branch, fed the same draft,
committed and rolled back together with the first. Each row's scores are a function of the two
prefixes alone, so drafts are verified as ever; drafters need not know of it. Source: Sanchez et al.
2023, arXiv 2306.17806; transformers' `UnbatchedClassifierFreeGuidanceLogitsProcessor`. Knows
nothing of gRPC.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from outrider_runtime.sampling_parameters import SamplingParameters

from outrider_target.decoding.branch import Branch
from outrider_target.decoding.committed import Committed
from outrider_target.decoding.own_tokens import OwnTokens, TokenRows, select_own_tokens
from outrider_target.decoding.strategy import BranchRows, Decision, Selector
from outrider_target.decoding.token_strategy import TokenOptions, TokenStrategy
from outrider_target.drafting.drafter import Draft
from outrider_target.requests.request import Guidance


class GuidedStrategy(TokenStrategy):
    """Greedy decoding or sampling from guided scores.

    Args:
        parameters: As for `TokenStrategy`.
        committed: Likewise.
        guidance: The scale, and the negative prompt.
        options: As for `TokenStrategy`.
    """

    width = 2

    verifies_others = False
    """The negative branch is fed one path."""

    def __init__(
        self,
        parameters: SamplingParameters,
        committed: Committed,
        guidance: Guidance,
        options: TokenOptions,
    ) -> None:
        super().__init__(parameters, committed, options)
        self._scale = guidance.scale
        self._negative = Branch(list(guidance.negative_prompt or committed.token_ids[-1:]))
        self._branches = (*self._branches, self._negative)

    @property
    def selector(self) -> Selector:
        """All guided rows of a batch are decided in one call."""
        return select_guided_tokens

    def rows(self, draft: Draft) -> TokenRows:
        """The same rows on both branches."""
        rows = super().rows(draft)
        negative = BranchRows(rows.branches[0].draft, rows.group.num_rows)
        return rows._replace(branches=(*rows.branches, negative), guidance_scale=self._scale)

    def commit(self, draft: Sequence[int], own: OwnTokens) -> Decision:
        """As without guidance; the negative branch goes along."""
        decision = super().commit(draft, own)
        self._negative.token_ids.extend(decision.token_ids)
        return decision


def guide(scores: torch.Tensor, negative: torch.Tensor, scale: float) -> torch.Tensor:
    """Push scores away from others: `n + scale * (s - n)` on log-probabilities.

    Args:
        scores: [rows, vocab].
        negative: [rows, vocab], those of the negative prompt.
        scale: 1 leaves the scores, more pushes them away, less draws them near.
    """
    wanted, other = scores.log_softmax(-1), negative.log_softmax(-1)
    return scale * (wanted - other) + other


def select_guided_tokens(logits: torch.Tensor, wanted: Sequence[TokenRows]) -> list[OwnTokens]:
    """The target's own token for each row, by guided scores."""
    own: list[torch.Tensor] = []
    guided: list[torch.Tensor] = []
    first = 0
    for rows in wanted:
        count = rows.group.num_rows  # on each of the two branches
        scores = logits[first : first + count]
        negative = logits[first + count : first + 2 * count]
        first += 2 * count
        own.append(scores)
        guided.append(guide(scores, negative, rows.guidance_scale))
    return select_own_tokens(torch.cat(guided), wanted, model_logits=torch.cat(own))
