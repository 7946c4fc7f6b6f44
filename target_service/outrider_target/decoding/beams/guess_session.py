"""The beams' own guesses as a drafter's session: they are drafts, and are counted as such."""

from __future__ import annotations

from collections.abc import Sequence

from outrider_target.decoding.beams.strategy import BeamStrategy
from outrider_target.drafting.drafter import NO_DRAFT, Draft, Outlook
from outrider_target.drafting.silence import Silence
from outrider_target.requests.request import DraftMethod


class GuessSession:
    """One sequence of beams that guesses."""

    active = True
    outlook = Outlook.EXPECTED
    silence = Silence.NOTHING_PROPOSED

    def __init__(self, strategy: BeamStrategy) -> None:
        self._strategy = strategy

    def commit(self, token_ids: Sequence[int], *, window: int) -> None:
        """Nothing to hear: the strategy guesses by itself."""

    def waiting_until(self, window: int, now: float) -> float | None:
        """Never waits."""
        return None

    def proposal(self, window: int) -> Draft:
        """The guess, for at most `window` rows a beam."""
        token_ids = self._strategy.guess(window * len(self._strategy.branches))
        return Draft(token_ids, DraftMethod.PROMPT_LOOKUP) if token_ids else NO_DRAFT

    def close(self) -> None:
        """Nothing to forget."""
