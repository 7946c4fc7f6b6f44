"""How a sequence decodes: an object with the two verbs of a round.

`rows` says what the target's forward must compute for the sequence, `commit` what its logits
decide; a draft is offered to `admissible` first. Between the two a *selector* runs once over all
rows of all sequences that share it. The scheduler knows only this port, so a new mode brings a
strategy and a selector, not a branch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

import torch
from outrider_runtime.model.log_probs import TokenLogProbs, token_log_probs
from outrider_runtime.model.scores import processed_scores
from outrider_runtime.model.selection import RowGroup, select_tokens
from outrider_runtime.sampling_parameters import SamplingParameters

from outrider_target.acceptance import Acceptance, accept
from outrider_target.constraint import Constraint
from outrider_target.request import TensorKind


class Rows(NamedTuple):
    """What a round computes for a sequence.

    Attributes:
        token_ids: Tokens to feed: those committed but not cached, then the draft.
        group: The rows whose logits are wanted, all at the end.
        num_top_log_probs: Alternatives to list with log-probabilities; None: none are wanted.
        given: The token of each row, where it is not to be chosen but given.
        tensors: What else to tell of each row: scores, logits. Other kinds do not matter here.
    """

    token_ids: Sequence[int]
    group: RowGroup
    num_top_log_probs: int | None = None
    given: Sequence[int] = ()
    tensors: frozenset[TensorKind] = frozenset()


class OwnTokens(NamedTuple):
    """The target's own token of each row of a group."""

    token_ids: list[int]
    log_probs: Sequence[TokenLogProbs] = ()
    """One entry a row, for requests that ask; else empty."""
    tensors: Mapping[TensorKind, torch.Tensor] = {}
    """Float32 [rows, vocab], by kind; those that the request asks for."""


Selector = Callable[[torch.Tensor, Sequence[Rows]], list[OwnTokens]]
"""From logits [rows, vocab] and whose they are to each one's own tokens."""


class DecodingStrategy(Protocol):
    """The port."""

    @property
    def selector(self) -> Selector:
        """Shared by all strategies whose rows may be decided together."""

    def admissible(self, draft: Sequence[int]) -> int:
        """How many tokens of a draft could be accepted at all: the others are not worth a row."""

    def rows(self, token_ids: Sequence[int], num_cached: int, draft: Sequence[int]) -> Rows:
        """What to compute for committed `token_ids`, of which `num_cached` are in the KV pool."""

    def commit(self, draft: Sequence[int], own: Sequence[int]) -> Acceptance:
        """What the selected tokens decide."""


def select_own_tokens(logits: torch.Tensor, wanted: Sequence[Rows]) -> list[OwnTokens]:
    """The target's own token for each row, greedy or sampled, split by sequence."""
    groups = [rows.group for rows in wanted]
    chosen = select_tokens(logits, groups, with_log_probs=False).token_ids
    own: list[OwnTokens] = []
    first = 0
    for rows in wanted:
        span = slice(first, first + rows.group.num_rows)
        first = span.stop
        log_probs: Sequence[TokenLogProbs] = ()
        if rows.num_top_log_probs is not None:
            log_probs = token_log_probs(
                logits[span], rows.group, chosen[span], num_top=rows.num_top_log_probs
            )
        own.append(OwnTokens(chosen[span], log_probs, row_tensors(logits[span], rows)))
    return own


def row_tensors(logits: torch.Tensor, rows: Rows) -> dict[TensorKind, torch.Tensor]:
    """Scores and logits of a sequence's rows, as far as they are asked for."""
    found: dict[TensorKind, torch.Tensor] = {}
    if TensorKind.SCORES in rows.tensors:
        found[TensorKind.SCORES] = processed_scores(logits, [rows.group])
    if TensorKind.LOGITS in rows.tensors:
        found[TensorKind.LOGITS] = logits.float()
    return found


class TokenStrategy:
    """Greedy decoding and multinomial sampling: one own token a row, accepted by agreement."""

    def __init__(
        self,
        parameters: SamplingParameters,
        *,
        seed: int,
        sample_index: int,
        num_prompt_tokens: int,
        num_top_log_probs: int | None = None,
        constraint: Constraint | None = None,
        tensors: frozenset[TensorKind] = frozenset(),
    ) -> None:
        self._parameters = parameters
        self._seed = seed
        self._sample_index = sample_index
        self._num_prompt_tokens = num_prompt_tokens
        self._num_top_log_probs = num_top_log_probs
        self._constraint = constraint
        self._tensors = tensors

    @property
    def selector(self) -> Selector:
        """All greedy and sampled rows of a batch are decided in one call."""
        return select_own_tokens

    def admissible(self, draft: Sequence[int]) -> int:
        """As many as the constraint allows; all without one."""
        return len(draft) if self._constraint is None else self._constraint.admissible(draft)

    def rows(self, token_ids: Sequence[int], num_cached: int, draft: Sequence[int]) -> Rows:
        """The last committed token and each draft token predict one token each."""
        prefix = [*token_ids, *draft]
        group = RowGroup(
            parameters=self._parameters,
            seed=self._seed,
            sample_index=self._sample_index,
            token_ids=prefix,
            num_rows=len(draft) + 1,
            num_prompt_tokens=self._num_prompt_tokens,
            allowed=None if self._constraint is None else self._constraint.allowed(draft),
        )
        return Rows(prefix[num_cached:], group, self._num_top_log_probs, tensors=self._tensors)

    def commit(self, draft: Sequence[int], own: Sequence[int]) -> Acceptance:
        """Keep what agrees; see `acceptance`."""
        return accept(draft, own)
