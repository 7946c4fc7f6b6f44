"""How probable it is that a draft's tokens are accepted, from what became of earlier ones. Pure.

Drafts are judged by what the target decided, whether they were verified or not; a token only when
all before it were the target's own, because of the others nothing is known. What is compared is
alike: tokens to which their drafter gives about the same probability, or, where it has no opinion,
those at the same position. What all sequences share is a prior; a sequence that is luckier or less
lucky with a drafter than the others shows soon.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from outrider_runtime.sampling_parameters import SamplingParameters

from outrider_target.drafting.drafter import Draft
from outrider_target.requests.request import DraftMethod

_FIRST_GUESS = 0.6
_SHARED_MEMORY = 600.0
_OWN_MEMORY = 40.0
_PRIOR = 8.0
"""Judged tokens after which what was seen outweighs the prior."""

_CERTAIN = 0.99
_TENTHS = 10
_LAST_POSITION = 8
"""Positions from here on in a draft are alike."""


class _Rate:
    """A forgetful share of accepted tokens."""

    __slots__ = ("_accepted", "_judged", "_memory")

    def __init__(self, memory: float) -> None:
        self._memory = memory
        self._accepted = 0.0
        self._judged = 0.0

    def given(self, prior: float) -> float:
        """The rate, where `prior` holds until there is evidence."""
        return (self._accepted + _PRIOR * prior) / (self._judged + _PRIOR)

    def observe(self, *, accepted: bool) -> None:
        kept = 1 - 1 / self._memory
        self._accepted = kept * self._accepted + accepted
        self._judged = kept * self._judged + 1


class Acceptance:
    """What is known of one drafter at one temperature."""

    def __init__(self) -> None:
        self.all = _Rate(_SHARED_MEMORY)
        """Of tokens all before which were accepted."""
        self._by_tenth = [_Rate(_SHARED_MEMORY) for _ in range(_TENTHS)]
        self._by_position = [_Rate(_SHARED_MEMORY) for _ in range(_LAST_POSITION + 1)]

    def alike(self, draft: Draft) -> list[_Rate]:
        """For each token of a draft the rate of those like it."""
        if draft.probabilities is None:
            positions = range(len(draft.token_ids))
            return [self._by_position[min(position, _LAST_POSITION)] for position in positions]
        tenths = (int(_TENTHS * probability) for probability in draft.probabilities)
        return [self._by_tenth[min(tenth, _TENTHS - 1)] for tenth in tenths]


class Calibration:
    """All drafters at all temperatures."""

    def __init__(self) -> None:
        self._known: defaultdict[tuple[DraftMethod, int], Acceptance] = defaultdict(Acceptance)

    def of(self, method: DraftMethod, temperature: int) -> Acceptance:
        """What is known of a drafter at a temperature (see `temperature_class`)."""
        return self._known[method, temperature]


class SequenceCalibration:
    """What is known of drafts of one sequence."""

    def __init__(self, shared: Calibration | None = None, temperature: int = 0) -> None:
        """Start from what all sequences share."""
        self._shared = shared or Calibration()
        self._temperature = temperature
        self._own: defaultdict[DraftMethod, _Rate] = defaultdict(lambda: _Rate(_OWN_MEMORY))

    def survival(self, draft: Draft) -> list[float]:
        """For each token, how probable it is that it and all before it are accepted."""
        if not draft.token_ids:
            return []
        shared = self._shared.of(draft.method, self._temperature)
        overall = shared.all.given(_FIRST_GUESS)
        luck = self._own[draft.method].given(overall) / overall
        alive = 1.0
        return [
            alive := alive * min(_CERTAIN, luck * rate.given(overall))
            for rate in shared.alike(draft)
        ]

    def observe(self, draft: Draft, decided: Sequence[int]) -> None:
        """Judge a draft by the tokens that the target decided, whether it was verified or not."""
        if not draft.token_ids:
            return
        shared = self._shared.of(draft.method, self._temperature)
        own = self._own[draft.method]
        judged = zip(shared.alike(draft), draft.token_ids, decided, strict=False)
        for alike, proposed, token_id in judged:
            accepted = proposed == token_id
            for rate in (shared.all, alike, own):
                rate.observe(accepted=accepted)
            if not accepted:
                return


def temperature_class(parameters: SamplingParameters) -> int:
    """Temperatures that are alike: none, to 0.5, to 0.85, to 1.15, above."""
    if not parameters.do_sample:
        return 0
    return 1 + sum(parameters.temperature > bound for bound in (0.5, 0.85, 1.15))
