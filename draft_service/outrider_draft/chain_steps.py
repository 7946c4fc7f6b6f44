"""Several tokens of each chain in one go, where each is the highest score behind the one before.

A small draft model computes a token in less time than the interpreter needs for a step. Knows
nothing of threads or gRPC.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from outrider_runtime.model.batch import SequenceRows
from outrider_runtime.model.row_group import RowGroup
from outrider_runtime.model.runner import Runner

from outrider_draft.line import Line, Proposed
from outrider_draft.proposer import Share

_SECONDS = 0.016
"""What the steps may take: meanwhile no target is heard."""
_SMOOTHING = 0.1
_FEW_ROWS = 2
"""After full acceptance a drafter has two tokens to catch up with."""


class ChainSteps:
    """Owned by the proposer's thread."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._step_seconds = math.inf  # smoothed

    def observe(self, batch: Sequence[SequenceRows], seconds: float) -> None:
        """Learn what a step took, unless there was much to catch up with."""
        if max(len(rows.token_ids) for rows in batch) > _FEW_ROWS:
            return
        known = self._step_seconds if math.isfinite(self._step_seconds) else seconds
        self._step_seconds = known + _SMOOTHING * (seconds - known)

    def number(self, shares: Sequence[Share], batch: Sequence[SequenceRows]) -> int:
        """How many tokens to propose for each share in one go; 1: as ever.

        Args:
            shares: A step's.
            batch: Their rows.
        """
        steps = min(share.num_tokens for share in shares)
        if steps <= 1 or not self._runner.runs_greedily:
            return 1
        steps = min(steps, int(_SECONDS / self._step_seconds))
        fitting = all(map(self._fits, shares, batch))
        return steps if steps > 1 and fitting and self._has_room(batch, steps) else 1

    def propose(
        self, shares: Sequence[Share], batch: Sequence[SequenceRows], steps: int
    ) -> list[list[Proposed]] | None:
        """Tokens for each share: at least one, and none behind one that its chain ends with.

        Afterwards the pool holds all but the last of them. None: a score is not finite, and nothing
        was changed.
        """
        least = [_least_log_prob(share) for share in shares]
        found = self._runner.forward_greedily(batch, steps, least_log_probs=least)
        if found is None:
            return None
        pool, proposed = self._runner.pool, []
        for share, rows, token_ids, log_probs in zip(
            shares, batch, found.token_ids, found.log_probs, strict=True
        ):
            kept = _up_to_its_end(share, token_ids, log_probs)
            proposed.append(kept)
            behind = len(token_ids) - len(kept)
            pool.truncate(rows.handle, pool.length(rows.handle) - behind)
        return proposed

    def _fits(self, share: Share, rows: SequenceRows) -> bool:
        """Whether a share's next tokens are the highest scores, whatever these tokens are."""
        request = share.session.request
        return (
            share.side is None
            and not share.num_siblings
            and rows.num_logits == 1
            and not request.draws
            and request.vocab_size >= self._runner.vocab_size
            and row_group(share.line).is_bare
        )

    def _has_room(self, batch: Sequence[SequenceRows], steps: int) -> bool:
        pool = self._runner.pool
        appends = ((rows.handle, len(rows.token_ids) + steps - 1) for rows in batch)
        return pool.blocks_needed_for(appends) <= pool.num_free_blocks


def row_group(line: Line) -> RowGroup:
    """The row behind a line, as tokens are chosen by it."""
    request = line.request
    return RowGroup(
        parameters=request.parameters,
        seed=request.seed,
        sample_index=request.sample_index,
        token_ids=line.tokens,
        num_rows=1,
        num_prompt_tokens=request.num_prompt_tokens,
        draft_temperature=request.draft_temperature,
    )


def _least_log_prob(share: Share) -> float:
    """A token of less ends the chain."""
    threshold = share.session.limits.confidence_threshold
    return math.log(threshold) if threshold > 0 else -math.inf


def _up_to_its_end(
    share: Share, token_ids: Sequence[int], log_probs: Sequence[float]
) -> list[Proposed]:
    ends = share.session.request.parameters.eos_token_ids
    least = _least_log_prob(share)
    kept: list[Proposed] = []
    for token_id, log_prob in zip(token_ids, log_probs, strict=True):
        kept.append(Proposed(token_id, log_prob))
        if log_prob < least or token_id in ends:
            break
    return kept
