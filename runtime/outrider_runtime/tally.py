"""A histogram that one thread fills in passing and any may read.

For what is counted every round: an observation costs a search among some twenty numbers, takes no
lock and looks up no label. Knows nothing of Prometheus.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

LATENCY_BUCKETS = (
    0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0,
)  # fmt: skip
"""From half a millisecond, a forward of a small model, to a minute, a long request; seconds."""

SIZE_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
"""For sequences and rows of a forward."""


class Buckets(NamedTuple):
    """A tally as it was at one moment."""

    cumulative: Sequence[tuple[str, float]]
    """Upper bound, then how many values are no larger; the last bound is `+Inf`."""
    total: float
    """Sum of all values."""


class Tally:
    """How often values fell between bounds."""

    __slots__ = ("_bounds", "_counts", "_total")

    def __init__(self, bounds: Sequence[float]) -> None:
        """Nothing is counted yet.

        Args:
            bounds: Upper bounds of the buckets, ascending; a last one without bound is added.
        """
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self._total = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Count a value, or several alike."""
        self._counts[bisect_left(self._bounds, value)] += times
        self._total += value * times

    @property
    def buckets(self) -> Buckets:
        """What was counted. Any thread; the sum may be one value ahead of or behind the counts."""
        counts = tuple(self._counts)
        names = [*(str(float(bound)) for bound in self._bounds), "+Inf"]
        return Buckets(list(zip(names, accumulate(counts), strict=True)), self._total)
