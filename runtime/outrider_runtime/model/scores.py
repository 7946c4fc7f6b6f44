"""From logits to processed scores: the distribution a token is then chosen from.

Everything a request asks of its scores, once over all rows of a batch. Knows nothing of noise or of
how a token is chosen. A row's scores depend on its logits and its group alone, never on the other
rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from outrider_runtime.model.arrays import Array, Arrays, arrays_of
from outrider_runtime.model.batch_parts import Kind, Part, bound, split
from outrider_runtime.model.candidates import Candidates, highest, possible
from outrider_runtime.model.processors import edit_scores
from outrider_runtime.model.processors.warpers import WARPERS
from outrider_runtime.model.processors.watermarking import add_watermarks
from outrider_runtime.model.row_group import PlacedGroup, RowGroup
from outrider_runtime.sampling_parameters import SamplingParameters


def processed_scores(logits: torch.Tensor, groups: Sequence[RowGroup]) -> torch.Tensor:
    """The scores of the whole vocabulary: what transformers returns as `scores`.

    Choosing a token does not need this: `selection.select_tokens` keeps to the candidates.

    Args:
        logits: [rows, vocab], the rows of all groups in order; not changed.
        groups: whose rows they are.

    Returns:
        Float32 [rows, vocab] on the device of the logits; minus infinity where a token is dropped.

    Raises:
        ValueError: the groups do not add up to the rows.
    """
    placed = place(logits, groups)
    xp, scores = arrays_of(logits)
    result = torch.full(scores.shape, -math.inf, dtype=torch.float32, device=logits.device)
    with torch.no_grad(), np.errstate(all="ignore"):
        scores = edit_scores(xp, scores, placed)
        parts = split(placed, rows_at_once=max(1, xp.at_once // scores.shape[-1]))
        while parts:
            part = parts.pop()
            found = part_candidates(xp, rows_of(xp, scores, part), part)
            values = torch.as_tensor(found.values)
            if found.token_ids is not None:
                whole = values.new_full((len(values), scores.shape[-1]), -math.inf)
                # Padding is minus infinity at id 0; the maximum leaves a real id 0 alone.
                token_ids = torch.as_tensor(found.token_ids)
                values = whole.scatter_reduce(1, token_ids, values, reduce="amax")
            result[part.rows] = values
            parts += part.unfinished(found)
    return result


def place(logits: torch.Tensor, groups: Sequence[RowGroup]) -> list[PlacedGroup]:
    """Where each group's rows lie.

    Raises:
        ValueError: the groups do not add up to the rows of `logits`.
    """
    placed, first_row = [], 0
    for group in groups:
        placed.append(PlacedGroup(group, first_row))
        first_row += group.num_rows
    if logits.ndim != 2 or len(logits) != first_row:
        raise ValueError(f"logits of shape {tuple(logits.shape)} for {first_row} rows of groups")
    return placed


def rows_of(xp: Arrays, scores: Array, part: Part) -> Array:
    """The part's rows of the batch: `scores` itself if that is all of them, else a copy."""
    return scores if len(part.rows) == len(scores) else scores[xp.integers(part.rows)]


def part_candidates(xp: Arrays, scores: Array, part: Part) -> Candidates:
    """The part's possible tokens after temperature, truncations, watermark and normalisation.

    Args:
        xp: where the scores live.
        scores: [rows of the part, vocab], edited; not changed.
        part: whose rows they are.
    """
    parameters = [group.parameters for group in part.groups]
    if part.kind is Kind.WINDOWED:
        found = highest(xp, scores, [bound(one) for one in parameters])
    else:
        found = Candidates(scores, None)
    if part.kind is not Kind.GREEDY:
        found = found._replace(values=_truncate(xp, found.values, parameters))
    if part.kind is Kind.TRUNCATED:
        found = possible(xp, found.values)
    marked = add_watermarks(
        xp,
        found.values,
        found.token_ids,
        groups=part.groups,
        lengths=part.positions,
        vocab_size=scores.shape[-1],
    )
    found = found._replace(values=marked)
    normalised = [i for i, one in enumerate(parameters) if one.renormalize_logits]
    if normalised:
        values = xp.copy(found.values)
        values[normalised] = xp.log_softmax(values[normalised])
        found = found._replace(values=values)
    return found


def _truncate(xp: Arrays, values: Array, parameters: Sequence[SamplingParameters]) -> Array:
    """Temperature and every warper, each once over the rows that want it."""
    if any(one.temperature != 1.0 for one in parameters):
        values = values / xp.floats([one.temperature for one in parameters])[:, None]
    wanted = {name for one in parameters for name in one.truncations}
    leasts = [one.min_tokens_to_keep for one in parameters]
    more_than_one = any(least > 1 for least in leasts)
    for name, warper in WARPERS.items():
        if name not in wanted:
            continue
        on = [i for i, one in enumerate(parameters) if name in one.truncations]
        column = xp.floats([warper.parameter(parameters[i]) for i in on])[:, None]
        least = xp.integers([leasts[i] for i in on])[:, None] if more_than_one else None
        if len(on) == len(parameters):
            values = warper.apply(xp, values, column, least)
        else:  # the other rows stay as they are, bit for bit
            values = xp.copy(values)
            values[on] = warper.apply(xp, values[on], column, least)
    return values
