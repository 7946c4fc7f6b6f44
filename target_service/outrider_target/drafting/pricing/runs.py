"""Rounds of one kind in a row, and what comparing neighbours says of what each kind costs. Pure."""

from __future__ import annotations

import math
import statistics
from collections import deque
from enum import Enum

from outrider_target.drafting.pricing.step_costs import size_class

RUN = 8
"""Rounds of a run that is compared."""
SETTLING = 2
"""First rounds of a run that are not counted: a drafter catches up, late answers arrive."""

_COUNTED = RUN - SETTLING
_STALE = 64
"""Rounds after which a run is nobody's neighbour any more."""

_OUTLIER = 4.0
_SAMPLES = 7
_ENOUGH_SAMPLES = 2


class Regime(Enum):
    """What holds for all sequences of a round, and what came of it."""

    FREE = "free"
    """Each asks if that pays: some do and some do not."""
    ASKED = "asked"
    """Nobody is kept from asking."""
    QUIET = "quiet"
    """Nobody asks."""
    PLAIN = "plain"
    """Nobody asks and nothing is verified."""


class Run:
    """Rounds of one kind in a row."""

    def __init__(self, kind: Regime, started: int) -> None:
        """Start with a round of that number."""
        self.kind = kind
        self.started = self.ended = started
        self._head: list[float] = []
        self._tail: deque[float] = deque(maxlen=_COUNTED)
        self._sizes: deque[int] = deque(maxlen=_COUNTED)
        self._settling = SETTLING

    def add(self, cost: float, num_sequences: int, now: int) -> bool:
        """Take in a round; returns whether its beginning has just become long enough."""
        self.ended = now
        if self._settling:
            self._settling -= 1
            return False
        self._tail.append(cost)
        self._sizes.append(size_class(num_sequences))
        if len(self._head) == _COUNTED:
            return False
        self._head.append(cost)
        return len(self._head) == _COUNTED

    @property
    def complete(self) -> bool:
        """Whether it is long enough to be compared."""
        return len(self._tail) == _COUNTED

    @property
    def size(self) -> int:
        """Size class of its last batches, the median."""
        return statistics.median_low(self._sizes)

    def over(self, earlier: Run) -> float | None:
        """How much longer its first rounds took than the last of an earlier run.

        None when they are not neighbours, or have unlike batches.
        """
        if not earlier.complete or self.started - earlier.ended > _STALE:
            return None
        if abs(earlier.size - self.size) > 1:
            return None
        return _mean(self._head) / _mean(list(earlier._tail))


class PairedRatio:
    """How much longer one kind of round takes than another, from runs that were neighbours."""

    def __init__(self) -> None:
        self._samples: dict[int, deque[float]] = {}  # by size class: logarithms
        self._ratios: dict[int, float] = {}  # of those that have enough of them

    def value(self, num_sequences: int) -> float | None:
        """The ratio for batches of this size, or the most similar; None until there is evidence."""
        wanted = size_class(num_sequences)
        if wanted in self._ratios:
            return self._ratios[wanted]
        if not self._ratios:
            return None
        return self._ratios[min(self._ratios, key=lambda size: (abs(size - wanted), size))]

    def add(self, size: int, ratio: float) -> None:
        """Learn from a pair of runs with batches of a size class."""
        samples = self._samples.setdefault(size, deque(maxlen=_SAMPLES))
        samples.append(math.log(ratio))
        if len(samples) >= _ENOUGH_SAMPLES:
            self._ratios[size] = math.exp(statistics.median(samples))


def _mean(costs: list[float]) -> float:
    """But for the worst outliers."""
    most = _OUTLIER * statistics.median(costs)
    return statistics.fmean(min(most, cost) for cost in costs)
