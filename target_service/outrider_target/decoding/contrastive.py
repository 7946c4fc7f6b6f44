"""Contrastive search as a strategy: of the `top_k` most probable tokens the one that repeats least.

To judge a candidate it has to be fed, so each is a branch of its own: one token after the context
that all of them share. The one that is chosen becomes the context, and the scores it gave name the
next candidates. So a round decides a token, after a first one that only looks at the prompt. Drafts
have no place in it. Knows nothing of gRPC.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from outrider_runtime.model.degeneration import contrastive_scores
from outrider_runtime.model.layer_reading import LayerReading
from outrider_runtime.model.log_probs import TokenLogProbs, token_log_probs
from outrider_runtime.model.scores import processed_scores
from outrider_runtime.model.selection import InvalidScores

from outrider_target.decoding.branch import Branch
from outrider_target.decoding.contrastive_context import ContrastiveContext
from outrider_target.decoding.own_tokens import OwnTokens, TokenRows, row_tensors
from outrider_target.decoding.strategy import BranchRows, Decision, Selector
from outrider_target.decoding.tensors import TensorReport
from outrider_target.decoding.token_strategy import TokenStrategy
from outrider_target.drafting.drafter import NO_DRAFT, Draft
from outrider_target.engine.events import Event
from outrider_target.requests.request import ContrastiveSettings, Finish


class CandidateRows(NamedTuple):
    """One row of each branch."""

    branches: Sequence[BranchRows]


class _Candidates(NamedTuple):
    """Tokens that may come next, one a branch.

    Attributes:
        token_ids: The tokens, most probable first.
        probabilities: [tokens], after all processors.
        logits: [1, vocab], what the model said of them.
        rows: The row they come from.
    """

    token_ids: list[int]
    probabilities: torch.Tensor
    logits: torch.Tensor
    rows: TokenRows


class ContrastiveStrategy:
    """Deterministic; one token a round.

    Args:
        inner: Makes the scores that candidates come from, and commits what is chosen.
        settings: The penalty and the number of candidates.
        tensors: What else to tell; that of `inner`.
    """

    verifies_others = False
    """Nothing is drafted."""

    def __init__(
        self,
        inner: TokenStrategy,
        settings: ContrastiveSettings,
        tensors: TensorReport | None = None,
    ) -> None:
        self.width = settings.top_k
        self._inner = inner
        self._settings = settings
        self._tensors = tensors
        self._context = ContrastiveContext(settings.last_layer, tensors)
        self._branches: Sequence[Branch] = (Branch(list(self.token_ids), reader=self._context),)
        self._candidates: _Candidates | None = None
        self._readings: list[LayerReading] = []  # of the candidates in the round that runs

    @property
    def selector(self) -> Selector:
        """The choice is made sequence by sequence, in `commit`."""
        return split_by_sequence

    @property
    def token_ids(self) -> Sequence[int]:
        """The committed tokens."""
        return self._inner.token_ids

    @property
    def branches(self) -> Sequence[Branch]:
        """The prompt, later the candidates."""
        return self._branches

    def admissible(self, draft: Sequence[int]) -> int:
        """Nothing: which token comes next depends on all candidates having been fed."""
        return 0

    def rows(self, draft: Draft) -> CandidateRows:
        """The last token of the prompt, or each candidate."""
        if self._candidates is None:
            return CandidateRows([BranchRows((), 1)])
        self._readings = [self._context.question(1) for _ in self._branches]
        return CandidateRows([BranchRows((), 1, reading) for reading in self._readings])

    def fed(self) -> Sequence[Event]:
        """What was read of the prompt, if that was asked for."""
        self._context.remember_prompt()
        return self._inner.fed()

    def commit(self, draft: Sequence[int], own: torch.Tensor) -> Decision:
        """Choose among the candidates, and find the next ones.

        Args:
            draft: Nothing.
            own: [branches, vocab], the logits behind each.

        Raises:
            InvalidScores: No token can come next.
        """
        if self._candidates is None:
            decision = Decision((), 0, 0, self.fed())
            chosen = 0
        else:
            chosen = self._choose(self._candidates)
            decision = self._take(self._candidates, chosen)
        if decision.finish is None:
            self._propose(own[chosen : chosen + 1], self._branches[chosen])
        return decision

    def end(self, finish: Finish) -> Decision:
        """No more tokens."""
        return self._inner.end(finish)

    def _choose(self, candidates: _Candidates) -> int:
        found = torch.cat([self._context.directions_in(reading) for reading in self._readings])
        scores = contrastive_scores(
            candidates.probabilities,
            found,
            self._context.directions,
            penalty_alpha=self._settings.penalty_alpha,
        )
        chosen = int(scores.argmax())
        self._context.remember(found[chosen : chosen + 1])
        return chosen

    def _take(self, candidates: _Candidates, chosen: int) -> Decision:
        token_id = candidates.token_ids[chosen]
        rows, logits = candidates.rows, candidates.logits
        log_probs: Sequence[TokenLogProbs] = ()
        if rows.num_top_log_probs is not None:
            log_probs = token_log_probs(
                logits, rows.group, [token_id], num_top=rows.num_top_log_probs
            )
        tensors = row_tensors(logits, rows, model_logits=logits)
        decision = self._inner.commit((), OwnTokens([token_id], log_probs, tensors))
        if self._tensors is None or decision.finish is not None:
            return decision
        self._tensors.use(self._readings[chosen], end=len(self.token_ids))
        return decision._replace(events=[*decision.events, *self._inner.fed()])

    def _propose(self, logits: torch.Tensor, source: Branch) -> None:
        """Make a branch of each token that may come next, after the context in `source`."""
        rows = self._inner.rows(NO_DRAFT)
        probabilities = processed_scores(logits, [rows.group])[0].softmax(-1)
        if not bool(probabilities.isfinite().all()):
            raise InvalidScores(
                0,
                "the model's scores hold a NaN, or the options leave no token to choose",
                options_at_fault=not bool(logits.isnan().any()),
            )
        best = probabilities.topk(min(self._settings.top_k, len(probabilities)))
        token_ids = best.indices.tolist()
        self._candidates = _Candidates(token_ids, best.values, logits.clone(), rows)
        self._branches = tuple(source.continued(token_id) for token_id in token_ids)


def split_by_sequence(logits: torch.Tensor, wanted: Sequence[CandidateRows]) -> list[torch.Tensor]:
    """Each sequence's own logits, one row a branch."""
    return list(torch.split(logits, [len(rows.branches) for rows in wanted]))
