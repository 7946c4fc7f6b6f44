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

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from outrider_runtime.model.layer_reading import LayerReading

from outrider_target.decoding.branch import Branch
from outrider_target.drafting.drafter import Draft
from outrider_target.engine.events import Event
from outrider_target.requests.request import Finish


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

    @property
    def verifies_others(self) -> bool:
        """Whether further paths of a draft (`Draft.others`) can be verified beside it."""

    def rows(self, draft: Draft) -> Rows:
        """What to compute, given a draft behind the committed tokens."""

    def fed(self) -> Sequence[Event]:
        """What to report after a forward that wanted no logits: a part of a prompt."""

    def commit(self, draft: Sequence[int], own: Any) -> Decision:
        """What the selector's answer decides."""

    def end(self, finish: Finish) -> Decision:
        """What is left to say when the sequence is ended from outside."""
