"""The choice of tokens: on processed scores, the highest or the seeded sample.

`y = argmax_v scores(v)` for greedy groups, `y = argmax_v (log p(v) + g(seed, sample, position, v))`
for sampling ones, where p is the distribution after all processors and g the noise of
`model.noise`. Target and drafter choose by this same function, which is what makes them agree.

Knows nothing of drafts, acceptance or scheduling. A row's result depends on its logits and its
group alone, never on the other rows of the batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from outrider_runtime.model.arrays import Array, Arrays, arrays_of
from outrider_runtime.model.batch_parts import Kind, Part, split
from outrider_runtime.model.candidates import Candidates
from outrider_runtime.model.noise import gumbel_from, gumbel_from_all
from outrider_runtime.model.part_inputs import PartInputs
from outrider_runtime.model.processors import edit_scores, edits_of
from outrider_runtime.model.row_group import PlacedGroup, RowGroup
from outrider_runtime.model.scores import part_candidates, place, rows_at_once, rows_of

__all__ = ["InvalidScores", "RowGroup", "Selection", "select_tokens"]


class InvalidScores(Exception):
    """A row from which no token can be chosen.

    Attributes:
        group_index: the row's group, by its place in the call.
        why: what is wrong with the row; fit to be shown to the sender of the request.
        options_at_fault: whether other options would have avoided it; else it is the model's.
    """

    def __init__(self, group_index: int, why: str, *, options_at_fault: bool) -> None:
        super().__init__(f"group {group_index}: {why}")
        self.group_index = group_index
        self.why = why
        self.options_at_fault = options_at_fault


class RunnerUp(NamedTuple):
    """A token that was nearly chosen."""

    token_id: int
    margin: float
    """By how much it lost: of scores and noise together, at least 0."""


class Selection(NamedTuple):
    """One entry per row, in the order of the rows."""

    token_ids: list[int]
    """The row's own token."""
    log_probs: list[float]
    """Natural logarithm of that token's probability under the processed scores. Empty if not asked
    for."""
    runners_up: Sequence[Sequence[RunnerUp]] = ()
    """The tokens that would have been chosen without it, the best first; as many as asked for and
    possible. Empty if not asked for."""


class _Choice(NamedTuple):
    """What is learned about the rows of a part: arrays where the scores live, then lists."""

    token_ids: Array
    log_probs: Array
    highest_before: Array
    """Highest score before temperature and truncation; NaN counts as highest."""
    highest_after: Array
    complete: Array
    """Whether all candidates were there (`Candidates.complete`); empty where they always are."""
    runners_up: Sequence[Array] = ()
    """Token ids and margins, alternately, the best first; empty if not asked for."""

    @classmethod
    def of(cls, columns: Sequence[Array]) -> _Choice:
        """From what `columns` gives."""
        return cls._make([*columns[:5], columns[5:]])

    def columns(self) -> list[Array]:
        """All arrays, in a row."""
        return [*self[:5], *self.runners_up]

    def runners_up_of(self, index: int) -> list[RunnerUp]:
        """Those of a row that could be chosen."""
        pairs = zip(self.runners_up[::2], self.runners_up[1::2], strict=True)
        found = (RunnerUp(ids[index], margins[index]) for ids, margins in pairs)
        return [one for one in found if math.isfinite(one.margin)]


def select_tokens(
    logits: torch.Tensor,
    groups: Sequence[RowGroup],
    *,
    with_log_probs: bool = True,
    num_runners_up: int = 0,
) -> Selection:
    """Choose every row's token.

    Args:
        logits: [rows, vocab], the rows of all groups in order; not changed.
        groups: whose rows they are.
        with_log_probs: a drafter's confidence. For greedy rows, normalising costs several times
            more than finding the highest score: a verifier does without.
        num_runners_up: how many further tokens of each row are wanted.

    Returns:
        The tokens and their log probabilities.

    Raises:
        InvalidScores: a row holds a NaN, allows no token, or samples with an infinite score.
        ValueError: the groups do not add up to the rows.
    """
    placed = place(logits, groups)
    xp, scores = arrays_of(logits)
    if not (with_log_probs or num_runners_up) and all(group.is_bare for group in groups):
        return _highest(xp, scores, placed)
    token_ids, log_probs = [0] * len(scores), [0.0] * len(scores) * with_log_probs
    runners_up: list[list[RunnerUp]] = [[] for _ in range(len(scores) if num_runners_up else 0)]
    # numpy would warn of the NaNs and infinities that `_check` looks for.
    with torch.no_grad(), np.errstate(all="ignore"):
        parts = split(placed, rows_at_once=rows_at_once(xp, scores))
        edits, inputs = xp.send((edits_of(placed, scores.shape[-1]), _inputs_of(parts, scores)))
        scores = edit_scores(xp, scores, edits)
        while parts:
            choices = [
                _choose(
                    xp,
                    rows_of(scores, one),
                    part,
                    one,
                    with_log_probs=with_log_probs,
                    num_runners_up=num_runners_up,
                )
                for part, one in zip(parts, inputs, strict=True)
            ]
            again: list[Part] = []
            for part, choice in zip(parts, _told(xp, choices), strict=True):
                _check(part, choice, placed)
                for index, row in enumerate(part.rows):
                    token_ids[row] = choice.token_ids[index]
                    if with_log_probs:
                        log_probs[row] = choice.log_probs[index]
                    if num_runners_up:
                        runners_up[row] = choice.runners_up_of(index)
                again += part.again(choice.complete)
            parts = again
            inputs = xp.send(_inputs_of(parts, scores))
    return Selection(token_ids, log_probs, runners_up if num_runners_up else ())


def _inputs_of(parts: Sequence[Part], scores: Array) -> list[PartInputs]:
    num_rows, vocab_size = scores.shape
    return [
        PartInputs.of(part, num_rows=num_rows, vocab_size=vocab_size, with_noise=True)
        for part in parts
    ]


def _told(xp: Arrays, choices: Sequence[_Choice]) -> list[_Choice]:
    """All choices as lists, fetched at once."""
    columns = [choice.columns() for choice in choices]
    lists = iter(xp.lists(*(column for some in columns for column in some)))
    return [_Choice.of([next(lists) for _ in some]) for some in columns]


def _highest(xp: Arrays, scores: Array, placed: Sequence[PlacedGroup]) -> Selection:
    """As `select_tokens` for bare groups: one search over all rows, since a round waits for it."""
    best = xp.argmax(scores)
    token_ids, tops = xp.lists(best, xp.pick(scores, best))
    if not all(map(math.isfinite, tops)):
        part = Part(Kind.GREEDY)
        for place_of_group in placed:
            part.add(place_of_group)
        _check(part, _Choice(token_ids, list(tops), tops, tops, []), placed)
    return Selection(token_ids, [])


def _choose(
    xp: Arrays,
    scores: Array,
    part: Part,
    inputs: PartInputs,
    *,
    with_log_probs: bool,
    num_runners_up: int,
) -> _Choice:
    found = part_candidates(xp, scores, part, inputs)
    values, padded = found.values, found.token_ids is not None
    best = xp.argmax(values)
    after = xp.pick(values, best)
    noisy = values if inputs.noise is None else _noisy(xp, found, inputs)
    places = best if inputs.noise is None else xp.argmax(noisy)
    token_ids = xp.pick(found.token_ids, places) if padded else places
    # Truncation can hide a NaN, so the scores before it are looked at as well.
    before = after if values is scores else xp.pick(scores, xp.argmax(scores))
    log_probs = xp.log_prob(values, places, after, padded=padded) if with_log_probs else after
    runners_up = _runners_up(xp, noisy, found, places, num_runners_up)
    complete = best[:0] if found.complete is None else found.complete
    return _Choice(token_ids, log_probs, before, after, complete, runners_up)


def _runners_up(
    xp: Arrays, noisy: Array, found: Candidates, places: Array, number: int
) -> list[Array]:
    """The next best tokens of each row. Few are wanted: looking again beats sorting a row."""
    if not number:
        return []
    tops = xp.pick(noisy, places)
    columns = xp.arange(noisy.shape[-1])
    runners_up = []
    for _ in range(number):
        noisy = xp.where(columns == places[:, None], -math.inf, noisy)
        places = xp.argmax(noisy)
        token_ids = places if found.token_ids is None else xp.pick(found.token_ids, places)
        runners_up += [token_ids, tops - xp.pick(noisy, places)]
    return runners_up


def _noisy(xp: Arrays, found: Candidates, inputs: PartInputs) -> Array:
    """Scores plus noise; float64, in which a tie between two tokens does not happen."""
    words = inputs.noise
    assert words is not None
    if found.token_ids is None:
        noise = gumbel_from_all(xp, found.values.shape[-1], words)
    else:
        noise = gumbel_from(xp, found.token_ids, words)
    if inputs.draft_temperatures is not None:
        # argmax(s / tau + g) is argmax(s + tau g), which has a meaning at 0 as well.
        noise = noise * inputs.draft_temperatures
    return xp.doubles(found.values) + noise


def _check(part: Part, choice: _Choice, placed: Sequence[PlacedGroup]) -> None:
    """Raise for the first row without a lawful choice.

    A greedy request takes an infinite score, as in transformers; its log probability becomes 0.
    """
    tops = zip(choice.highest_before, choice.highest_after, strict=True)
    for index, (before, after) in enumerate(tops):
        if math.isfinite(before) and math.isfinite(after):
            continue
        if math.isnan(before):
            why = "the model's scores hold a NaN"
        elif before < 0:
            why = "the request's options leave no token to choose"
        elif part.kind is Kind.GREEDY and after > 0:
            choice.log_probs[index] = 0.0
            continue
        else:
            why = "an infinite score cannot be sampled from; remove_invalid_values replaces it"
        row = part.rows[index]
        ends = (first_row + group.num_rows for group, first_row in placed)
        group_index = next(i for i, end in enumerate(ends) if row < end)
        raise InvalidScores(group_index, why, options_at_fault=not math.isnan(before))
