"""From logits to processed scores: the distribution a token is then chosen from.

Everything a request asks of its scores, once over all rows of a batch. Knows nothing of noise or of
how a token is chosen. A row's scores depend on its logits and its group alone, never on the other
rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch

from outrider_runtime.model.arrays import Array, Arrays, arrays_of, on_device
from outrider_runtime.model.batch_parts import Kind, Part, split
from outrider_runtime.model.candidates import Candidates, highest, possible
from outrider_runtime.model.part_inputs import PartInputs, Truncation
from outrider_runtime.model.processors import edit_scores, edits_of
from outrider_runtime.model.processors.warpers import WARPERS
from outrider_runtime.model.processors.watermarking import add_watermarks
from outrider_runtime.model.row_group import PlacedGroup, RowGroup


class PendingScores:
    """Processed scores, of which it is not known yet whether all are final.

    On a device the most probable tokens of a row are gathered into a window. Where more of them tie
    than it has places for, the row has to be done again; whether there is such a row is told along
    with whatever else the device is asked for. On a CPU scores are final at once.

    Args:
        logits: [rows, vocab], the rows of all groups in order; not changed.
        groups: whose rows they are.

    Raises:
        ValueError: the groups do not add up to the rows.

    Attributes:
        scores: float32 [rows, vocab] on the device of the logits; minus infinity where a token is
            dropped.
        complete: bool arrays, one entry for each row that may have to be done again; often none.
    """

    def __init__(self, logits: torch.Tensor, groups: Sequence[RowGroup]) -> None:
        placed = place(logits, groups)
        self._xp, scores = arrays_of(logits)
        self.scores = torch.empty(scores.shape, dtype=torch.float32, device=logits.device)
        with torch.no_grad(), np.errstate(all="ignore"):
            parts = split(placed, rows_at_once=rows_at_once(self._xp, scores))
            edits = edits_of(placed, scores.shape[-1])
            edits, inputs = self._xp.send((edits, self._inputs_of(parts)))
            self._edited = edit_scores(self._xp, scores, edits)
            self._windowed: list[Part] = []
            self.complete: list[Array] = []
            self._process(parts, inputs)

    def finish(self, *complete: Iterable[bool]) -> bool:
        """Do what is missing over again, in place.

        Args:
            complete: `complete`, as the host sees it.

        Returns:
            Whether anything was: what was made of the scores has to be made again.
        """
        with torch.no_grad(), np.errstate(all="ignore"):
            parts = [
                again
                for part, done in zip(self._windowed, complete, strict=True)
                for again in part.again(done)
            ]
            self._windowed, self.complete = [], []
            self._process(parts, self._xp.send(self._inputs_of(parts)))
        return bool(parts)

    def _inputs_of(self, parts: Sequence[Part]) -> list[PartInputs]:
        num_rows, vocab_size = self.scores.shape
        return [
            PartInputs.of(part, num_rows=num_rows, vocab_size=vocab_size, with_noise=False)
            for part in parts
        ]

    def _process(self, parts: Sequence[Part], inputs: Sequence[PartInputs]) -> None:
        for part, one in zip(parts, inputs, strict=True):
            rows = rows_of(self._edited, one)
            found = part_candidates(self._xp, rows, part, one)
            values = torch.as_tensor(found.values)
            if found.token_ids is not None:
                whole = values.new_full((len(values), self.scores.shape[-1]), -math.inf)
                # Padding is minus infinity at id 0; the maximum leaves a real id 0 alone.
                token_ids = torch.as_tensor(found.token_ids)
                values = whole.scatter_reduce(1, token_ids, values, reduce="amax")
            if one.rows is None:
                self.scores.copy_(values)
            else:
                self.scores[torch.as_tensor(one.rows)] = values
            if found.complete is not None:
                self._windowed.append(part)
                self.complete.append(found.complete)


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
    pending = PendingScores(logits, groups)
    if pending.complete:
        pending.finish(*on_device(logits.device).lists(*pending.complete))
    return pending.scores


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


def rows_at_once(xp: Arrays, scores: Array) -> int:
    """Most rows of a part in which every score has to be worked on repeatedly."""
    return max(1, xp.at_once // int(scores.shape[-1]))


def rows_of(scores: Array, inputs: PartInputs) -> Array:
    """The part's rows of the batch: `scores` itself if that is all of them, else a copy."""
    return scores if inputs.rows is None else scores[inputs.rows]


def part_candidates(xp: Arrays, scores: Array, part: Part, inputs: PartInputs) -> Candidates:
    """The part's possible tokens after temperature, truncations, watermark and normalisation.

    Args:
        xp: where the scores live.
        scores: [rows of the part, vocab], edited; not changed.
        part: whose rows they are.
        inputs: the part's, where the scores live.
    """
    if part.kind is Kind.WINDOWED:
        found = highest(xp, scores, inputs.last_wanted, width=part.window)
    else:
        found = Candidates(scores, None)
    values = found.values
    if inputs.temperatures is not None:
        values = values / inputs.temperatures
    for truncation in inputs.truncations:
        values = _truncate(xp, values, truncation)
    found = found._replace(values=values)
    if part.kind is Kind.TRUNCATED:
        found = possible(xp, found.values)
    values = add_watermarks(xp, found.values, found.token_ids, inputs.markings)
    if inputs.normalised is not None:
        values = xp.copy(values)
        values[inputs.normalised] = xp.log_softmax(values[inputs.normalised])
    return found._replace(values=values)


def _truncate(xp: Arrays, values: Array, truncation: Truncation) -> Array:
    """A warper, over the rows that want it."""
    name, rows, parameter, least = truncation
    warper = WARPERS[name]
    if rows is None:
        return warper.apply(xp, values, parameter, least)
    values = xp.copy(values)
    values[rows] = warper.apply(xp, values[rows], parameter, least)
    return values
