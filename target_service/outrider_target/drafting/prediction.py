"""The text that the caller expects, as a draft: what OpenAI calls predicted outputs.

As long as the output is what was predicted, the prediction goes on. Where they part, the place in
the prediction is found again by the output's last tokens. Nothing leaves the target service.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Sequence

from outrider_target.drafting.drafter import NO_DRAFT, Draft, DraftSession, Outlook
from outrider_target.drafting.silence import Silence
from outrider_target.requests.request import DraftMethod, GenerationRequest

_ANCHOR = 2
"""Tokens in a row that make a place worth a look."""

_LONGEST_ANCHOR = 8

_PLACES = 8
"""Places looked at on either side of where the output left the prediction."""

_TRUSTED = 4
"""Tokens that must agree at a new place before it counts as the right one."""

_MAX_MISSES = 4
"""Tokens that may go wrong in a row before nothing is proposed until a place is found."""


class Alignment:
    """Where in a prediction an output is."""

    def __init__(self, prediction: Sequence[int]) -> None:
        self._prediction = prediction
        self._places: defaultdict[tuple[int, ...], list[int]] = defaultdict(list)
        for end in range(_ANCHOR, len(prediction) + 1):
            self._places[tuple(prediction[end - _ANCHOR : end])].append(end)
        self._tail: list[int] = []  # of the output
        self._parted_at = 0
        self.next = 0
        """Position in the prediction of the token that should come next."""
        self.agreed = 0
        """Tokens in a row that were as predicted."""
        self.misses = 0
        """Tokens in a row that were not."""

    def follow(self, token_id: int) -> None:
        """Move on with the output's next token."""
        self._tail = [*self._tail[1 - _LONGEST_ANCHOR :], token_id]
        if self.next < len(self._prediction) and self._prediction[self.next] == token_id:
            self.next += 1
            self.agreed += 1
            self.misses = 0
            return
        if self.agreed >= _TRUSTED:
            self._parted_at = self.next
        self.agreed = 0
        self.misses += 1
        place, size = self._find()
        if place is not None:
            self.next, self.agreed, self.misses = place, size, 0
        else:
            self.next += 1  # perhaps this token merely stands for another

    def _find(self) -> tuple[int | None, int]:
        """The place behind the output's last tokens, and how many of them are found there.

        The longest match, and of equal ones the nearest to where the output left the prediction.
        """
        places = self._places.get(tuple(self._tail[-_ANCHOR:]), ())
        nearest = bisect_left(places, self._parted_at)
        best, best_rank = None, (0, 0)
        for place in places[max(0, nearest - _PLACES) : nearest + _PLACES]:
            rank = self._match_size(place), -abs(place - self._parted_at)
            if best is None or rank > best_rank:
                best, best_rank = place, rank
        return best, best_rank[0]

    def _match_size(self, place: int) -> int:
        size = 0
        for own in reversed(self._tail):
            if size == place or self._prediction[place - size - 1] != own:
                break
            size += 1
        return size


class PredictionSession:
    """One sequence and its prediction."""

    active = True
    outlook = Outlook.POSSIBLE
    silence = Silence.NOTHING_PROPOSED

    def __init__(self, request: GenerationRequest, token_ids: Sequence[int]) -> None:
        self._prediction = request.speculation.prediction
        self._alignment = Alignment(self._prediction)
        self.commit(token_ids[len(request.prompt) :], window=0)

    def commit(self, token_ids: Sequence[int], *, window: int) -> None:
        """Find the place behind the new tokens."""
        for token_id in token_ids:
            self._alignment.follow(token_id)

    def waiting_until(self, window: int, now: float) -> float | None:
        """Never waits."""
        return None

    def proposal(self, window: int) -> Draft:
        """What comes next in the prediction."""
        place = self._alignment.next
        token_ids = self._prediction[place : place + window]
        if not token_ids or self._alignment.misses > _MAX_MISSES:
            return NO_DRAFT
        return Draft(token_ids, DraftMethod.PREDICTION)

    @property
    def evidence(self) -> tuple[int, int]:
        """How many tokens agreed of late, in powers of two, and how many did not."""
        return min(4, self._alignment.agreed.bit_length()), self._alignment.misses

    def close(self) -> None:
        """Nothing to forget."""


class PredictionDrafter:
    """Opens prediction sessions."""

    def open(
        self,
        request: GenerationRequest,
        *,
        sample_index: int,
        token_ids: Sequence[int],
        window: int,
    ) -> DraftSession:
        """Index the prediction."""
        return PredictionSession(request, token_ids)
