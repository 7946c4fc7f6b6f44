"""Acceptance by ratio where the scores live on a device: all sequences at once, told at once.

The rule, the random numbers and hence the tokens are those of `speculative_sampling` and
`block_verification`, which say why it is right; there each sequence is decided by itself, since a
CPU has nothing to wait for. Knows nothing of gRPC or scheduling.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, chain
from typing import NamedTuple

import numpy as np
import torch
from outrider_runtime.model.arrays import NUMPY, Array, Arrays, on_device
from outrider_runtime.model.noise import NoiseRow, NoiseWords, Stream, gumbel_from_all, uniforms
from outrider_runtime.model.scores import PendingScores, rows_at_once

from outrider_target.decoding.drawn_rows import DrawnRows


class Verdicts(NamedTuple):
    """What becomes of the drafts.

    Attributes:
        num_accepted: [sequences], draft tokens kept.
        token_ids: [sequences], the target's own token behind them; without a meaning where a
            sequence has no row there.
        doubtful: [rows], where perhaps no token can be chosen: then the verdict on the row's
            sequence means nothing.
    """

    num_accepted: Sequence[int]
    token_ids: Sequence[int]
    doubtful: Sequence[bool]


class _Drafts(NamedTuple):
    """Drafts of some sequences, padded to the longest and to the widest distribution."""

    first_rows: Array
    """Int64 [sequences]."""
    lengths: Array
    """Int64 [sequences], in tokens."""
    token_ids: Array
    """Int32 [sequences, places, tokens]: what each draft token could have been."""
    weights: Array
    """Int32, of the same shape: with which weights; 0 is padding."""
    drawn: Array
    """Int64 [sequences, places]: what it is, as an index."""
    numbers: Array
    """Float64 [sequences, places], in (0, 1): what decides."""
    noise: NoiseWords
    """For the target's own draw from each sequence's first row."""

    @classmethod
    def of(cls, wanted: Sequence[DrawnRows], first_rows: Sequence[int]) -> _Drafts:
        """In numpy."""
        drafts = [rows.draft[: rows.group.num_rows] for rows in wanted]
        sizes = [len(token.distribution.token_ids) for draft in drafts for token in draft]
        places = len(drafts), max(map(len, drafts), default=0) or 1
        token_ids, weights = np.zeros((2, *places, max(sizes, default=1)), np.int32)
        drawn, numbers = np.zeros(places, np.int64), np.ones(places)
        for index, (rows, draft) in enumerate(zip(wanted, drafts, strict=True)):
            for place, (token_id, told) in enumerate(draft):
                token_ids[index, place, : len(told.token_ids)] = told.token_ids
                weights[index, place, : len(told.weights)] = told.weights
                drawn[index, place] = told.token_ids.index(token_id)
            if draft:
                numbers[index, : len(draft)] = _numbers(rows, len(draft))
        keys = [_key(rows) for rows in wanted]
        return cls(
            np.array(first_rows, np.int64),
            np.array([len(draft) for draft in drafts], np.int64),
            token_ids,
            weights,
            drawn,
            numbers,
            NoiseWords.of(keys, Stream.RESIDUAL),
        )


def _key(rows: DrawnRows) -> NoiseRow:
    group = rows.group
    return NoiseRow(group.seed, group.sample_index, group.first_length)


def _numbers(rows: DrawnRows, count: int) -> Array:
    """What decides on each token of a draft: few, so the host makes them."""
    first = _key(rows)
    keys = [first._replace(position=first.position + i, base=first.position) for i in range(count)]
    return uniforms(NUMPY, keys, stream=Stream.ACCEPT)


def judge(logits: torch.Tensor, wanted: Sequence[DrawnRows]) -> Verdicts:
    """Verify drafts, and draw a token of the target's own behind what is kept.

    Args:
        logits: [rows, vocab] on a device, sequence by sequence.
        wanted: Whose they are.
    """
    pending = PendingScores(logits, [rows.group for rows in wanted])
    xp = on_device(logits.device)
    step = rows_at_once(xp, pending.scores)
    first_rows = [0, *accumulate(rows.group.num_rows for rows in wanted)][:-1]
    starts = range(0, len(wanted), step)
    some = [_Drafts.of(wanted[i : i + step], first_rows[i : i + step]) for i in starts]
    some = xp.send(some)
    while True:
        log_norms = _log_norms(pending.scores, step)
        # Truncation can hide a NaN.
        doubtful = ~log_norms.isfinite() | logits.isnan().any(-1)
        found = [_judge(xp, pending.scores, log_norms, drafts) for drafts in some]
        told = xp.lists(doubtful, *chain(*found), *pending.complete)
        verdicts, complete = told[1 : 1 + 2 * len(some)], told[1 + 2 * len(some) :]
        if not pending.finish(*complete):
            return Verdicts([*chain(*verdicts[::2])], [*chain(*verdicts[1::2])], told[0])


def _log_norms(scores: torch.Tensor, step: int) -> torch.Tensor:
    """Float64 [rows]: the logarithm of what each row's probabilities add up to."""
    return torch.cat([rows.double().logsumexp(-1) for rows in torch.split(scores, step)])


def _judge(
    xp: Arrays, scores: torch.Tensor, log_norms: torch.Tensor, drafts: _Drafts
) -> tuple[Array, Array]:
    """How many tokens of each draft are kept, and the own token behind them: int64 [sequences]."""
    given = drafts.weights.double()
    sums = given.sum(-1, keepdim=True)
    given = given / sums.clamp(min=1)  # [sequences, places, tokens]
    num_accepted, scale = _accept(_target_probabilities(scores, log_norms, drafts), given, drafts)
    rows = _within(drafts.first_rows + num_accepted, scores)
    weights = (scores[rows].double() - log_norms[rows, None]).exp()
    # What the target still has to give where a draft token was not kept.
    sequences = xp.arange(len(rows))
    place = num_accepted.clamp(max=given.shape[1] - 1)
    less = given[sequences, place]
    left = scale[:, None] * weights
    left = left.scatter_add(1, drafts.token_ids[sequences, place].long(), -less).clamp(min=0.0)
    # Both agree to the last digit: then a rejection has no probability but that of rounding.
    residual = (num_accepted < drafts.lengths)[:, None] & left.any(-1, keepdim=True)
    weights = torch.where(residual, left, weights)
    further = torch.stack((num_accepted, torch.zeros_like(num_accepted)))[..., None]
    noise = gumbel_from_all(
        xp, scores.shape[-1], drafts.noise._replace(odd=drafts.noise.odd + further)
    )
    return num_accepted, (weights.log() + noise).argmax(-1)


def _target_probabilities(
    scores: torch.Tensor, log_norms: torch.Tensor, drafts: _Drafts
) -> torch.Tensor:
    """Float64 [sequences, places, tokens]: what the target says of what drafts could have been."""
    places = torch.arange(drafts.drawn.shape[1], device=scores.device)
    rows = _within(drafts.first_rows[:, None] + places, scores)
    found = scores[rows[..., None], drafts.token_ids.long()].double()
    return torch.where(drafts.weights > 0, (found - log_norms[rows, None]).exp(), 0.0)


def _accept(
    target: torch.Tensor, given: torch.Tensor, drafts: _Drafts
) -> tuple[torch.Tensor, torch.Tensor]:
    """`block_verification.verify_block` for all: tokens kept, int64, and their scales, float64.

    Args:
        target: Float64 [sequences, places, tokens], the target's probabilities.
        given: The drafter's, of the same shape.
        drafts: Whose they are.
    """
    drawn = drafts.drawn[..., None]
    ratios = (target.gather(2, drawn) / given.gather(2, drawn))[..., 0]
    scale = torch.ones_like(ratios[:, 0])
    scales = torch.stack([scale := (scale * ratio).clamp(max=1.0) for ratio in ratios.T], dim=1)
    before = scales[:, :-1]
    outside = (1.0 - target[:, 1:].sum(-1)).clamp(min=0.0)
    excess = (before[..., None] * target[:, 1:] - given[:, 1:]).clamp(min=0.0).sum(-1)
    left = before * outside + excess
    chances = torch.where(before == 1.0, 1.0, left / (left + 1.0 - before))
    numbers = torch.arange(1, scales.shape[1] + 1, device=scales.device)  # of tokens
    whole = numbers == drafts.lengths[:, None]
    chances = torch.where(whole, scales, torch.nn.functional.pad(chances, (0, 1)))
    kept = (drafts.numbers <= chances) & (numbers <= drafts.lengths[:, None])
    num_accepted = (kept * numbers).amax(-1)
    scale = scales.gather(1, (num_accepted - 1).clamp(min=0)[:, None])[:, 0]
    return num_accepted, torch.where(num_accepted > 0, scale, 1.0)


def _within(rows: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """Rows that exist: padding lies behind a sequence's last one."""
    return rows.clamp(max=len(scores) - 1)
