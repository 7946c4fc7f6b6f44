"""Own tokens of sequences whose drafts are accepted by ratio: from logits to what a round decides.

No random stream is shared with the drafter (see `noise.Stream`). Acceptance is keyed by the
committed length as well: block verification looks at every position of a draft, so the next round,
which meets some of them again, must not decide by the same numbers. The target's own draws need no
such key: each position is drawn for once. Knows nothing of gRPC or scheduling.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from outrider_runtime.model.arrays import NUMPY, arrays_of
from outrider_runtime.model.noise import NoiseRow, Stream, gumbel_of, uniforms
from outrider_runtime.model.row_group import RowGroup
from outrider_runtime.model.scores import processed_scores
from outrider_runtime.model.selection import InvalidScores, select_tokens
from outrider_runtime.sparse_distribution import SparseDistribution

from outrider_target.decoding.acceptance import Acceptance
from outrider_target.decoding.block_verification import Place, verify_block
from outrider_target.decoding.device_ratios import judge
from outrider_target.decoding.drawn_rows import DrawnRows, DrawnToken


def decide_by_ratio(logits: torch.Tensor, wanted: Sequence[DrawnRows]) -> list[Acceptance]:
    """Verify drafts by ratio, and draw a token of the target's own behind what is kept.

    Args:
        logits: [rows, vocab], sequence by sequence.
        wanted: Whose they are.

    Returns:
        Per sequence the tokens decided. Where the options leave no token to choose behind draft
        tokens that are kept, these alone: the next round will meet the same row as its first.

    Raises:
        InvalidScores: From a sequence's first row no token can be chosen.
    """
    if arrays_of(logits[:0])[0] is not NUMPY:
        verdicts = judge(logits, wanted)
        if not any(verdicts.doubtful):
            decided = zip(wanted, verdicts.num_accepted, verdicts.token_ids, strict=True)
            return [_acceptance(*one) for one in decided]
    return _decide_one_by_one(logits, wanted)


def _acceptance(rows: DrawnRows, num_accepted: int, own: int) -> Acceptance:
    token_ids = [token.token_id for token in rows.draft[:num_accepted]]
    own_ids = [own] if num_accepted < rows.group.num_rows else []
    return Acceptance([*token_ids, *own_ids], num_accepted)


def _decide_one_by_one(logits: torch.Tensor, wanted: Sequence[DrawnRows]) -> list[Acceptance]:
    """On a CPU; and on a device for what has to be looked at row by row, which waits for it."""
    scores = processed_scores(logits, [rows.group for rows in wanted])
    log_norms = scores.double().logsumexp(-1)
    # Truncation can hide a NaN: such rows are looked at again, one by one.
    doubtful = (~log_norms.isfinite() | logits.isnan().any(-1)).tolist()
    decided: list[Acceptance] = []
    first = 0
    for rows in wanted:
        span = slice(first, first + rows.group.num_rows)
        first = span.stop
        lawful = rows.group.num_rows
        if any(doubtful[span]):
            lawful = _num_lawful(logits[span], rows.group, doubtful[span])
        log_probs = scores[span][:lawful].double() - log_norms[span][:lawful, None]
        decided.append(_decide(log_probs, rows.group, rows.draft[:lawful]))
    return decided


def _num_lawful(logits: torch.Tensor, group: RowGroup, doubtful: Sequence[bool]) -> int:
    """Rows before the first from which nothing can be chosen.

    Which row that is depends on the tokens before it alone, so a draft may be cut there.
    """
    for row, doubt in enumerate(doubtful):
        if not doubt:
            continue
        try:
            select_tokens(logits[: row + 1], [group.first(row + 1)], with_log_probs=False)
        except InvalidScores:
            if row == 0:
                raise
            return row
    return group.num_rows


def _decide(log_probs: torch.Tensor, group: RowGroup, draft: Sequence[DrawnToken]) -> Acceptance:
    """Decide for one sequence.

    Args:
        log_probs: Float64 [rows, vocab], normalised; lawful rows.
        group: Whose they are.
        draft: At most as many tokens as rows.
    """
    base = group.first_length
    keys = [NoiseRow(group.seed, group.sample_index, base + i, base) for i in range(len(draft))]
    numbers = uniforms(NUMPY, keys, stream=Stream.ACCEPT).tolist() if keys else []
    num_accepted, scale = verify_block(_places(log_probs, draft), numbers)
    token_ids = [token.token_id for token in draft[:num_accepted]]
    if num_accepted == len(log_probs):
        return Acceptance(token_ids, num_accepted)
    weights = log_probs[num_accepted].exp()
    if num_accepted < len(draft):
        weights = residual(weights, scale, draft[num_accepted].distribution)
    key = NoiseRow(group.seed, group.sample_index, base + num_accepted)
    return Acceptance([*token_ids, _draw(weights, key)], num_accepted)


def _places(log_probs: torch.Tensor, draft: Sequence[DrawnToken]) -> list[Place]:
    """What both sides say of the tokens that the drafts could have been."""
    width = max((len(token.distribution.token_ids) for token in draft), default=0)
    padded = [
        [*token.distribution.token_ids, *[0] * (width - len(token.distribution.token_ids))]
        for token in draft
    ]
    if not padded:
        return []
    ids = torch.tensor(padded, device=log_probs.device)
    target = log_probs[: len(draft)].gather(1, ids).exp().cpu().numpy()
    places: list[Place] = []
    for (token_id, distribution), probabilities in zip(draft, target, strict=True):
        weights = np.array(distribution.weights, np.float64)
        drawn = distribution.token_ids.index(token_id)
        places.append(Place(drawn, weights / weights.sum(), probabilities[: len(weights)]))
    return places


def residual(
    probabilities: torch.Tensor, scale: float, distribution: SparseDistribution
) -> torch.Tensor:
    """What the target still has to give where a draft token was not kept.

    Args:
        probabilities: Float64 [vocab], the target's.
        scale: That of the tokens kept (`block_verification.Verdict`).
        distribution: What the draft token was drawn from.

    Returns:
        Float64 [vocab], not normalised.
    """
    weights = torch.tensor(distribution.weights, dtype=torch.float64, device=probabilities.device)
    left = scale * probabilities
    left[list(distribution.token_ids)] -= weights / weights.sum()
    left = left.clamp(min=0.0)
    # Both agree to the last digit: then a rejection has no probability but that of rounding.
    return left if bool(left.any()) else probabilities


def _draw(weights: torch.Tensor, key: NoiseRow) -> int:
    """A token with probability proportional to its weight."""
    token_ids = weights.nonzero()[:, 0]
    xp, _ = arrays_of(weights[:0])
    ids = token_ids[None].numpy() if xp is NUMPY else token_ids[None]
    noise = torch.as_tensor(gumbel_of(xp, ids, [key], stream=Stream.RESIDUAL))[0]
    return int(token_ids[(weights[token_ids].log() + noise).argmax()])
