"""By what a drafter's scores are divided before the shared noise is added: learned from agreement.

An under-confident drafter agrees more often when its scores are sharpened, an over-confident one
when they are flattened. Which it is shows in how often its tokens are the target's own; so each new
session gets what has agreed most at its temperature, and now and then one gets another value. None
of it can change the text. Pure.
"""

from __future__ import annotations

import itertools

USUAL = 1.0
CHOICES = (USUAL, 0.85, 0.7, 1.2)

_EXPLORING = 8
"""Of so many sessions one tries another value."""

_MEMORY = 4000.0
_ENOUGH = 300.0
"""Judged tokens before a value is compared."""

_MARGIN = 0.02
"""Difference of rates that is not taken for chance."""


class _Tried:
    """How often drafts with a value agreed."""

    def __init__(self) -> None:
        self.agreed = 0.0
        self.judged = 0.0

    def observe(self, agreed: int, judged: int) -> None:
        kept = max(0.0, 1 - judged / _MEMORY)
        self.agreed = kept * self.agreed + agreed
        self.judged = kept * self.judged + judged

    @property
    def rate(self) -> float | None:
        """None until there is enough evidence."""
        return self.agreed / self.judged if self.judged >= _ENOUGH else None


class DraftTemperatures:
    """What has agreed most, for each temperature class of requests."""

    def __init__(self) -> None:
        self._tried: dict[int, dict[float, _Tried]] = {}
        self._sessions: dict[int, itertools.count[int]] = {}

    def choose(self, temperature: int) -> float:
        """For a new session of a temperature class (`calibration.temperature_class`)."""
        if temperature == 0:
            return USUAL  # without noise nothing but the order of the scores matters
        number = next(self._sessions.setdefault(temperature, itertools.count(1)))
        if number % _EXPLORING == 0:
            return CHOICES[number // _EXPLORING % len(CHOICES)]
        return self.best(temperature)

    def best(self, temperature: int) -> float:
        """What has agreed most; the usual value unless another one is better for certain."""
        tried = self._tried.get(temperature, {})
        rates = {value: each.rate for value, each in tried.items()}
        usual = rates.get(USUAL)
        if usual is None:
            return USUAL
        known = {value: rate for value, rate in rates.items() if rate is not None}
        best = max(known, key=lambda value: known[value])
        return best if known[best] > usual + _MARGIN else USUAL

    def observe(self, temperature: int, value: float, *, agreed: int, judged: int) -> None:
        """Learn from a draft that was made with a value: its tokens up to the first wrong one."""
        if judged:
            tried = self._tried.setdefault(temperature, {})
            tried.setdefault(value, _Tried()).observe(agreed, judged)
