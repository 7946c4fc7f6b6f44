"""Greedy decoding and multinomial sampling as a strategy, with any draft verified."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from outrider_runtime.model.drafted_text import DraftedText
from outrider_runtime.model.row_group import NamedProcessor, RowGroup
from outrider_runtime.sampling_parameters import SamplingParameters

from outrider_target.constraints.constraint import Constraint
from outrider_target.decoding.acceptance import accept_furthest
from outrider_target.decoding.branch import Branch
from outrider_target.decoding.committed import Committed
from outrider_target.decoding.drawn_rows import DrawnToken
from outrider_target.decoding.own_tokens import OwnTokens, TokenRows, select_own_tokens
from outrider_target.decoding.strategy import BranchRows, Decision, Selector
from outrider_target.decoding.tensors import TensorReport, TokenTensor
from outrider_target.drafting.drafter import Draft
from outrider_target.engine.events import Event, TokensDecided
from outrider_target.requests.request import Finish


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenOptions:
    """What a request asks of each of its tokens, beside how their scores are processed."""

    seed: int
    sample_index: int
    num_top_log_probs: int | None = None
    """Alternatives to list with log-probabilities; None: none are wanted."""
    constraint: Constraint | None = None
    tensors: TensorReport | None = None
    processors: Sequence[NamedProcessor] = ()
    by_ratio: bool = False
    """Whether drafts are accepted by ratio, not by agreement."""


class TokenStrategy:
    """One own token a row; a draft is kept as far as it agrees, or by ratio.

    Args:
        parameters: How scores are processed.
        committed: The sequence's tokens, the prompt at first.
        options: What else the request asks for.
    """

    width: int = 1

    def __init__(
        self, parameters: SamplingParameters, committed: Committed, options: TokenOptions
    ) -> None:
        self._parameters = parameters
        self._committed = committed
        self._seed = options.seed
        self._sample_index = options.sample_index
        self._num_prompt_tokens = len(committed.token_ids)
        self._num_top_log_probs = options.num_top_log_probs
        self._constraint = options.constraint
        self._tensors = tensors = options.tensors
        self._processors = options.processors
        self._by_ratio = options.by_ratio
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
        """Where only tokens are told, accepted by agreement, and any may follow."""
        free = self._constraint is None and not self._by_ratio
        return free and self._num_top_log_probs is None and self._tensors is None

    def rows(self, draft: Draft) -> TokenRows:
        """The last committed token and each draft token predict one token each.

        Further paths of the draft, where they are verified, have prefixes and rows of their own.
        """
        others = self._others = draft.others if draft.others and self.verifies_others else ()
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
