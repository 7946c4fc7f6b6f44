"""How probable it is that a draft's tokens are accepted, from what became of earlier ones. Pure.

Drafts are judged by what the target decided, whether they were verified or not; a token only when
all before it were the target's own, because of the others nothing is known. What is compared is
alike: tokens to which their drafter gives about the same probability, or, where it has no opinion,
those at the same position. What all sequences share is a prior; a sequence that is luckier or less
lucky with a drafter than the others shows soon.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from outrider_runtime.sampling_parameters import SamplingParameters

from outrider_target.drafting.drafter import Draft
from outrider_target.requests.request import DraftMethod

_FIRST_GUESS = 0.6
_SHARED_MEMORY = 600.0
_OWN_MEMORY = 40.0
_PRIOR = 8.0
"""Judged tokens after which what was seen outweighs the prior."""

_CERTAIN = 0.99
_BINS = 10
_LAST_POSITION = 8
"""Positions from here on in a draft are alike."""


class Likeness(NamedTuple):
    """What tokens have in common that are judged together."""

    bin: int | None
    """Tenth of the probability that its drafter gives it; None when it has no opinion."""
    position: int
    """In the draft; 0 where there is a probability."""


def likenesses(draft: Draft) -> Iterator[Likeness]:
    """Of a draft's tokens."""
    for position in range(len(draft.token_ids)):
        if draft.probabilities is None:
            yield Likeness(None, min(position, _LAST_POSITION))
        else:
            yield Likeness(min(_BINS - 1, int(_BINS * draft.probabilities[position])), 0)


class _Rate:
    """A forgetful share of accepted tokens."""

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
        self._overall = _Rate(_SHARED_MEMORY)
        self._alike: dict[Likeness, _Rate] = {}

    @property
    def overall(self) -> float:
        """Probability that a token is accepted, all before it having been."""
        return self._overall.given(_FIRST_GUESS)

    def rate(self, likeness: Likeness) -> float:
        """The same for tokens that are alike."""
        alike = self._alike.get(likeness)
        return self.overall if alike is None else alike.given(self.overall)

    def observe(self, likeness: Likeness, *, accepted: bool) -> None:
        """Judge a token."""
        self._overall.observe(accepted=accepted)
        self._alike.setdefault(likeness, _Rate(_SHARED_MEMORY)).observe(accepted=accepted)


class Calibration:
    """All drafters at all temperatures."""

    def __init__(self) -> None:
        self._known: dict[tuple[DraftMethod, int], Acceptance] = {}

    def of(self, method: DraftMethod, temperature: int) -> Acceptance:
        """What is known of a drafter at a temperature (see `temperature_class`)."""
        return self._known.setdefault((method, temperature), Acceptance())


class SequenceCalibration:
    """What is known of drafts of one sequence."""

    def __init__(self, shared: Calibration | None = None, temperature: int = 0) -> None:
        """Start from what all sequences share."""
        self._shared = shared or Calibration()
        self._temperature = temperature
        self._own: dict[DraftMethod, _Rate] = {}

    def survival(self, draft: Draft) -> list[float]:
        """For each token, how probable it is that it and all before it are accepted."""
        shared = self._shared.of(draft.method, self._temperature)
        own = self._own.get(draft.method)
        luck = 1.0 if own is None else own.given(shared.overall) / shared.overall
        alive = 1.0
        return [
            alive := alive * min(_CERTAIN, luck * shared.rate(likeness))
            for likeness in likenesses(draft)
        ]

    def observe(self, draft: Draft, decided: Sequence[int]) -> None:
        """Judge a draft by the tokens that the target decided, whether it was verified or not."""
        if not draft.token_ids:
            return
        shared = self._shared.of(draft.method, self._temperature)
        own = self._own.setdefault(draft.method, _Rate(_OWN_MEMORY))
        judged = zip(likenesses(draft), draft.token_ids, decided, strict=False)
        for likeness, proposed, token_id in judged:
            accepted = proposed == token_id
            shared.observe(likeness, accepted=accepted)
            own.observe(accepted=accepted)
            if not accepted:
                return


def temperature_class(parameters: SamplingParameters) -> int:
    """Temperatures that are alike: none, to 0.5, to 0.85, to 1.15, above."""
    if not parameters.do_sample:
        return 0
    return 1 + sum(parameters.temperature > bound for bound in (0.5, 0.85, 1.15))
