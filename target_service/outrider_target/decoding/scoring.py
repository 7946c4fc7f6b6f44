"""Scoring a given text: teacher forcing as a strategy and a drafter.

The given tokens are their own draft and the target's own tokens at once, so that a text is fed
window by window, through the same rounds, beside everybody else's. Knows nothing of gRPC.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from outrider_runtime.model.log_probs import token_log_probs
from outrider_runtime.sampling_parameters import SamplingParameters

from outrider_target.decoding.committed import Committed
from outrider_target.decoding.own_tokens import OwnTokens, TokenRows
from outrider_target.decoding.strategy import Selector
from outrider_target.decoding.token_strategy import TokenOptions, TokenStrategy
from outrider_target.drafting.drafter import NO_DRAFT, Draft, Outlook
from outrider_target.drafting.silence import Silence
from outrider_target.requests.request import DraftMethod

WINDOW = 64
"""Given tokens a round: bounds the log-probabilities, [window, vocab], that exist at a time."""


class ScoringStrategy(TokenStrategy):
    """Decides what was given, and tells how probable it was."""

    verifies_others = False
    """There is one text."""

    def __init__(
        self,
        parameters: SamplingParameters,
        committed: Committed,
        given: Sequence[int],
        *,
        num_top_log_probs: int | None,
    ) -> None:
        options = TokenOptions(seed=0, sample_index=0, num_top_log_probs=num_top_log_probs)
        super().__init__(parameters, committed, options)
        self._given = given

    @property
    def selector(self) -> Selector:
        """Nothing is selected."""
        return take_given_tokens

    def rows(self, draft: Draft) -> TokenRows:
        """One row for each given token of the window."""
        rows = super().rows(draft)
        first = rows.group.first_length - self._num_prompt_tokens
        return rows._replace(given=self._given[first : first + rows.group.num_rows])


def take_given_tokens(logits: torch.Tensor, wanted: Sequence[TokenRows]) -> list[OwnTokens]:
    """The given tokens with their log-probabilities, whatever the scores say."""
    own: list[OwnTokens] = []
    first = 0
    for rows in wanted:
        span = slice(first, first + rows.group.num_rows)
        first = span.stop
        log_probs = token_log_probs(
            logits[span], rows.group, rows.given, num_top=rows.num_top_log_probs or 0
        )
        own.append(OwnTokens(list(rows.given), log_probs))
    return own


class ScoringSession:
    """Drafts the given tokens."""

    active = False
    outlook = Outlook.EXPECTED
    silence = Silence.NOTHING_PROPOSED

    def __init__(self, given: Sequence[int]) -> None:
        self._given = given
        self._num_committed = 0

    def commit(self, token_ids: Sequence[int], *, window: int) -> None:
        """Move on."""
        self._num_committed += len(token_ids)

    def waiting_until(self, window: int, now: float) -> float | None:
        """Never waits."""
        return None

    def proposal(self, window: int) -> Draft:
        """The next of them."""
        token_ids = self._given[self._num_committed : self._num_committed + window]
        return Draft(token_ids, DraftMethod.NONE) if token_ids else NO_DRAFT

    def close(self) -> None:
        """Nothing to forget."""
