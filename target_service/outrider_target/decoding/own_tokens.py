"""The target's own token of each row of a batch: what drafts are compared with.

Knows nothing of how the rows came about, nor of what is made of the tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import NamedTuple

import torch
from outrider_runtime.model.log_probs import TokenLogProbs, token_log_probs
from outrider_runtime.model.row_group import RowGroup
from outrider_runtime.model.scores import processed_scores
from outrider_runtime.model.selection import select_tokens

from outrider_target.decoding.drawn_rows import DrawnRows, DrawnToken
from outrider_target.decoding.speculative_sampling import decide_by_ratio
from outrider_target.decoding.strategy import BranchRows
from outrider_target.requests.request import TensorKind


class TokenRows(NamedTuple):
    """Rows that predict the token behind each committed or drafted one.

    Attributes:
        branches: The one branch; with guidance the negative one behind it.
        group: The rows whose logits are wanted.
        num_top_log_probs: Alternatives to list with log-probabilities; None: none are wanted.
        given: The token of each row, where it is not to be chosen but given.
        tensors: What else to tell of each row: scores, logits. Other kinds do not matter here.
        guidance_scale: How far the scores are pushed from those of the negative branch.
        drawn: The draft, where it is accepted by ratio; None where by agreement.
    """

    branches: Sequence[BranchRows]
    group: RowGroup
    num_top_log_probs: int | None = None
    given: Sequence[int] = ()
    tensors: frozenset[TensorKind] = frozenset()
    guidance_scale: float = 1.0
    drawn: Sequence[DrawnToken] | None = None
    side_groups: Sequence[RowGroup] = ()
    """For each further path the rows behind its tokens; they lie behind those of `group`."""

    @property
    def num_rows(self) -> int:
        """All of them."""
        return self.group.num_rows + sum(group.num_rows for group in self.side_groups)


class OwnTokens(NamedTuple):
    """The target's own token of each row of a group; by ratio, what a round decides."""

    token_ids: list[int]
    log_probs: Sequence[TokenLogProbs] = ()
    """One entry a row, for requests that ask; else empty."""
    tensors: Mapping[TensorKind, torch.Tensor] = {}
    """Float32 [rows, vocab], by kind; those that the request asks for."""
    num_accepted: int | None = None
    """How many draft tokens they begin with, where that is decided with them: by ratio, and where
    several steps were taken without a draft. None where agreement is yet to be seen."""
    sides: Sequence[Sequence[int]] = ()
    """The own tokens behind those of each further path."""


def select_own_tokens(
    logits: torch.Tensor, wanted: Sequence[TokenRows], *, model_logits: torch.Tensor | None = None
) -> list[OwnTokens]:
    """The target's own token for each row, greedy or sampled, split by sequence.

    Args:
        logits: [rows, vocab], what tokens are chosen by.
        wanted: Whose they are.
        model_logits: The model's own, where those are others: what is told as such.
    """
    model_logits = logits if model_logits is None else model_logits
    own = _choose(logits, wanted)
    first = 0
    for index, rows in enumerate(wanted):
        if rows.num_top_log_probs is not None or rows.tensors:
            span = slice(first, first + rows.group.num_rows)
            own[index] = _told_more(own[index], rows, logits[span], model_logits[span])
        first += rows.num_rows
    return own


def _told_more(
    choice: OwnTokens, rows: TokenRows, logits: torch.Tensor, model_logits: torch.Tensor
) -> OwnTokens:
    """With log-probabilities and tensors, as far as they are asked for."""
    log_probs: Sequence[TokenLogProbs] = ()
    if rows.num_top_log_probs is not None:
        count = len(choice.token_ids)
        log_probs = token_log_probs(
            logits[:count],
            rows.group.first(count),
            choice.token_ids,
            num_top=rows.num_top_log_probs,
            model_logits=model_logits[:count],
        )
    tensors = row_tensors(logits, rows, model_logits=model_logits)
    return choice._replace(log_probs=log_probs, tensors=tensors)


def _choose(logits: torch.Tensor, wanted: Sequence[TokenRows]) -> list[OwnTokens]:
    """The tokens alone: all of one kind in one call."""
    if all(rows.drawn is None for rows in wanted):
        chosen = iter(select_tokens(logits, _groups(wanted), with_log_probs=False).token_ids)
        return [
            OwnTokens(
                list(islice(chosen, rows.group.num_rows)),
                sides=[list(islice(chosen, group.num_rows)) for group in rows.side_groups],
            )
            for rows in wanted
        ]
    if all(rows.drawn is not None for rows in wanted):
        drawn = [DrawnRows(rows.group, rows.drawn or ()) for rows in wanted]
        decided = decide_by_ratio(logits, drawn)
        return [OwnTokens(token_ids, num_accepted=count) for token_ids, count in decided]
    parts = torch.split(logits, [rows.num_rows for rows in wanted])
    own: dict[int, OwnTokens] = {}
    for by_ratio in (False, True):
        places = [i for i, rows in enumerate(wanted) if (rows.drawn is not None) is by_ratio]
        some = _choose(torch.cat([parts[i] for i in places]), [wanted[i] for i in places])
        own |= zip(places, some, strict=True)
    return [own[place] for place in range(len(wanted))]


def _groups(wanted: Sequence[TokenRows]) -> list[RowGroup]:
    return [group for rows in wanted for group in (rows.group, *rows.side_groups)]


def row_tensors(
    logits: torch.Tensor, rows: TokenRows, *, model_logits: torch.Tensor
) -> dict[TensorKind, torch.Tensor]:
    """Scores and logits of a sequence's rows, as far as they are asked for."""
    found: dict[TensorKind, torch.Tensor] = {}
    if TensorKind.SCORES in rows.tensors:
        found[TensorKind.SCORES] = processed_scores(logits, [rows.group])
    if TensorKind.LOGITS in rows.tensors:
        found[TensorKind.LOGITS] = model_logits.float()
    return found
