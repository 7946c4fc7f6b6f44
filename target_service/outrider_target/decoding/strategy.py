"""How a sequence decodes: an object with the two verbs of a round.

`rows` says what the target's forward must compute for the sequence, `commit` what its logits
decide; a draft is offered to `admissible` first. Between the two a *selector* runs once over all
rows of all sequences that share it.

A strategy owns the sequence's tokens, as *branches* (`branch.py`): lines of tokens that are kept in
the KV pool. The scheduler feeds, forks, drops and rolls them back, and after a preemption feeds
them again; it knows only this port, so a new mode brings a strategy and a selector, not a branch in
its code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple, Protocol

import torch
from outrider_runtime.model.drafted_text import DraftedText
from outrider_runtime.model.layer_reading import LayerReading
from outrider_runtime.model.log_probs import TokenLogProbs, token_log_probs
from outrider_runtime.model.row_group import NamedProcessor, RowGroup
from outrider_runtime.model.scores import processed_scores
from outrider_runtime.model.selection import select_tokens
from outrider_runtime.sampling_parameters import SamplingParameters

from outrider_target.constraints.constraint import Constraint
from outrider_target.decoding.acceptance import accept_furthest
from outrider_target.decoding.branch import Branch
from outrider_target.decoding.committed import Committed
from outrider_target.decoding.speculative_sampling import (
    DrawnRows,
    DrawnToken,
    decide_by_ratio,
)
from outrider_target.decoding.tensors import TensorReport, TokenTensor
from outrider_target.drafting.drafter import Draft
from outrider_target.engine.events import Event, TokensDecided
from outrider_target.requests.request import Finish, TensorKind


class BranchRows(NamedTuple):
    """What a round computes on one branch.

    Attributes:
        draft: Tokens to feed behind the branch's own.
        num_logits: For how many of the last tokens fed logits are wanted.
        reading: What the selector needs to know of the model's layers.
        others: Further drafts, each fed behind a copy of the branch; logits are wanted for each of
            their tokens, behind those of the branch itself.
    """

    draft: Sequence[int]
    num_logits: int
    reading: LayerReading | None = None
    others: Sequence[Sequence[int]] = ()


class Rows(Protocol):
    """What a round computes for a sequence. The rest is between strategy and selector."""

    @property
    def branches(self) -> Sequence[BranchRows]:
        """One entry for each of the strategy's branches, in their order."""


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
    """How many draft tokens they begin with, by ratio; None where agreement is yet to be seen."""
    sides: Sequence[Sequence[int]] = ()
    """The own tokens behind those of each further path."""


class Decision(NamedTuple):
    """What a round decided for a sequence.

    Attributes:
        token_ids: Tokens committed, up to the one that ended the sequence.
        num_accepted: How many of them the drafter had proposed.
        num_generated: Tokens of the output that are final now.
        events: What to report of it.
        finish: Set when the sequence ended.
    """

    token_ids: Sequence[int]
    num_accepted: int
    num_generated: int
    events: Sequence[Event]
    finish: Finish | None = None


Selector = Callable[[torch.Tensor, Sequence[Any]], Sequence[Any]]
"""From logits [rows, vocab] and whose they are, as the strategies' `rows` said, to what each one's
`commit` is given. The rows lie sequence by sequence, branch by branch."""


class DecodingStrategy(Protocol):
    """The port."""

    @property
    def selector(self) -> Selector:
        """Shared by all strategies whose rows may be decided together."""

    @property
    def width(self) -> int:
        """Most branches it will have at a time."""

    @property
    def token_ids(self) -> Sequence[int]:
        """The committed tokens, prompt first."""

    @property
    def branches(self) -> Sequence[Branch]:
        """What the next round runs on; never empty.

        Only `commit` changes it, by another tuple. A branch that is not in it any more is dropped;
        one that is new in it is forked off its `source`, which was there before (`continued`).
        Tokens of a branch may grow or be cut in place.
        """

    def admissible(self, draft: Sequence[int]) -> int:
        """How many tokens of a draft could be accepted at all: the others are not worth a row."""

    def rows(self, draft: Draft) -> Rows:
        """What to compute, given a draft behind the committed tokens."""

    def fed(self) -> Sequence[Event]:
        """What to report after a forward that wanted no logits: a part of a prompt."""

    def commit(self, draft: Sequence[int], own: Any) -> Decision:
        """What the selector's answer decides."""

    def end(self, finish: Finish) -> Decision:
        """What is left to say when the sequence is ended from outside."""


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
    chosen = _choose(logits, wanted)
    own: list[OwnTokens] = []
    first = 0
    for rows, choice in zip(wanted, chosen, strict=True):
        span = slice(first, first + rows.group.num_rows)
        first += rows.num_rows
        log_probs: Sequence[TokenLogProbs] = ()
        if rows.num_top_log_probs is not None:
            count = len(choice.token_ids)
            log_probs = token_log_probs(
                logits[span][:count],
                rows.group.first(count),
                choice.token_ids,
                num_top=rows.num_top_log_probs,
                model_logits=model_logits[span][:count],
            )
        tensors = row_tensors(logits[span], rows, model_logits=model_logits[span])
        own.append(choice._replace(log_probs=log_probs, tensors=tensors))
    return own


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


class TokenStrategy:
    """Greedy decoding and multinomial sampling: one own token a row, accepted by agreement."""

    width: int = 1

    def __init__(
        self,
        parameters: SamplingParameters,
        committed: Committed,
        *,
        seed: int,
        sample_index: int,
        num_top_log_probs: int | None = None,
        constraint: Constraint | None = None,
        tensors: TensorReport | None = None,
        processors: Sequence[NamedProcessor] = (),
        by_ratio: bool = False,
    ) -> None:
        self._parameters = parameters
        self._committed = committed
        self._seed = seed
        self._sample_index = sample_index
        self._num_prompt_tokens = len(committed.token_ids)
        self._num_top_log_probs = num_top_log_probs
        self._constraint = constraint
        self._tensors = tensors
        self._processors = processors
        self._by_ratio = by_ratio
        self._others: Sequence[Sequence[int]] = ()  # of the round
        reader = tensors if tensors is not None and tensors.reads_layers else None
        self._branches: Sequence[Branch] = (Branch(committed.token_ids, reader=reader),)

    @property
    def selector(self) -> Selector:
        """All greedy and sampled rows of a batch are decided in one call."""
        return select_own_tokens

    @property
    def token_ids(self) -> Sequence[int]:
        """The committed tokens."""
        return self._committed.token_ids

    @property
    def branches(self) -> Sequence[Branch]:
        """The committed tokens alone."""
        return self._branches

    def admissible(self, draft: Sequence[int]) -> int:
        """As many as the constraint allows; all without one.

        By ratio the first that it forbids is worth something, though not a row: to be drawn and
        rejected is what makes room for other tokens.
        """
        if self._constraint is None:
            return len(draft)
        possible = self._constraint.admissible(draft)
        return min(possible + 1, len(draft)) if self._by_ratio else possible

    @property
    def verifies_others(self) -> bool:
        """Whether it can verify a tree: where only tokens are told, and any may follow."""
        plain = type(self) is TokenStrategy and self._constraint is None and not self._by_ratio
        return plain and self._num_top_log_probs is None and self._tensors is None

    def rows(self, draft: Draft) -> TokenRows:
        """The last committed token and each draft token predict one token each.

        Further paths of the draft, where they are verified, have prefixes and rows of their own.
        """
        others = self._others = draft.others if self.verifies_others else ()
        fed = draft.token_ids
        if self._by_ratio and self._constraint is not None:
            fed = fed[: self._constraint.admissible(fed)]
        num_rows = len(fed) + 1
        group = RowGroup(
            parameters=self._parameters,
            seed=self._seed,
            sample_index=self._sample_index,
            token_ids=DraftedText(self._committed.token_ids, fed),
            num_rows=num_rows,
            num_prompt_tokens=self._num_prompt_tokens,
            allowed=None if self._constraint is None else self._constraint.allowed(fed),
            processors=self._processors,
        )
        return TokenRows(
            (BranchRows(fed, num_rows, others=others),),
            group,
            self._num_top_log_probs,
            tensors=frozenset() if self._tensors is None else self._tensors.kinds,
            drawn=_drawn(draft) if self._by_ratio else None,
            side_groups=[
                group._replace(token_ids=[*self._committed.token_ids, *path], num_rows=len(path))
                for path in others
            ],
        )

    def fed(self) -> Sequence[Event]:
        """What was read of the prompt, if that was asked for."""
        if self._tensors is None:
            return ()
        known = list(self._tensors.of_positions(certain=len(self.token_ids)))
        return [TokensDecided(self._sample_index, (), (), None, tensors=known)] if known else ()

    def commit(self, draft: Sequence[int], own: OwnTokens) -> Decision:
        """Keep what agrees (see `acceptance`), up to the token that ends the sequence."""
        decided, num_accepted = own.token_ids, own.num_accepted
        if num_accepted is None:
            decided, num_accepted = accept_furthest(draft, own.token_ids, self._others, own.sides)
        kept = self._committed.extend(decided)
        num_accepted = min(num_accepted, len(kept))
        drafted = [position < num_accepted for position in range(len(kept))]
        event = TokensDecided(
            self._sample_index,
            kept,
            drafted,
            self._committed.finish,
            own.log_probs[: len(kept)],
            () if self._tensors is None else self._known_tensors(self._tensors, own, len(kept)),
        )
        return Decision(kept, num_accepted, len(kept), (event,), self._committed.finish)

    def _known_tensors(
        self, tensors: TensorReport, own: OwnTokens, num_kept: int
    ) -> list[TokenTensor]:
        length = len(self.token_ids)
        return [
            *tensors.of_positions(certain=length - 1),
            *tensors.of_tokens(own.tensors, count=num_kept, length=length),
        ]

    def end(self, finish: Finish) -> Decision:
        """No more tokens."""
        return Decision((), 0, 0, (TokensDecided(self._sample_index, (), (), finish),), finish)


def _drawn(draft: Draft) -> list[DrawnToken]:
    distributions = draft.distributions or [None] * len(draft.token_ids)
    return list(map(DrawnToken.of, draft.token_ids, distributions))
