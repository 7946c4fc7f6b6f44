"""What a round's forward costs, by sequences and rows. Pure.

The shape of the curve is measured once, at load: what so many rows cost beside a single one.
What it says of a row is then corrected by the rounds themselves, for each size of the batch: from
one round to the next, how much longer one of more rows took. Differences of neighbours do not mind
that a machine is busier now than an hour ago.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

MEASURED_ROWS = (1, 2, 4, 6, 8, 12, 16, 32)
"""Sizes of the forwards that are timed when a model is loaded."""

_LEAST_SLOPE = 0.02
"""What a row costs at least, of a forward of one row: a flat curve would have no price."""

_DEFAULT_SLOPE = 0.25
"""What a row costs where nothing was measured."""

_MEMORY = 96
_PRIOR_WEIGHT = 48.0
"""Rows' difference between neighbours that outweighs what the measured shape says."""

_MOST_CORRECTION = 8.0
_SMOOTHING = 0.05


class Measured(NamedTuple):
    """A timed forward."""

    num_rows: int
    seconds: float


class RowCurve:
    """What a forward of so many rows costs beside one of a single row.

    Monotone and piecewise linear.
    """

    def __init__(self, measured: Sequence[Measured] = ()) -> None:
        """Take the shape from forwards of one sequence, if there are any."""
        self._rows, self._costs = [1], [1.0]
        first = next((m.seconds for m in measured if m.num_rows == 1 and m.seconds > 0), None)
        if first is None:
            measured = ()
        for rows, seconds in sorted(measured):
            if first is None or rows <= self._rows[-1]:
                continue
            least = self._costs[-1] + _LEAST_SLOPE * (rows - self._rows[-1])
            self._rows.append(rows)
            self._costs.append(max(least, seconds / first))
        if len(self._rows) == 1:
            self._rows.append(2)
            self._costs.append(1 + _DEFAULT_SLOPE)
        self._known: dict[int, float] = {}  # asked for many times a round

    def __call__(self, num_rows: int) -> float:
        """Cost of a forward; 1 for one row."""
        cost = self._known.get(num_rows)
        if cost is None:
            cost = self._known[num_rows] = self._between(num_rows)
        return cost

    def _between(self, num_rows: int) -> float:
        at = min(max(1, bisect_left(self._rows, num_rows)), len(self._rows) - 1)
        (x0, x1), (y0, y1) = self._rows[at - 1 : at + 1], self._costs[at - 1 : at + 1]
        return y0 + (y1 - y0) / (x1 - x0) * (num_rows - x0)


def size_class(num_sequences: int) -> int:
    """Batches that are alike: of 1, 2, 3 to 4, 5 to 8, .. sequences."""
    return max(0, num_sequences - 1).bit_length()


class _Batch:
    """What is known of batches of one size class."""

    def __init__(self) -> None:
        self.seconds_per_cost = 0.0  # smoothed; 0 before the first round
        self.correction = 1.0
        """How much more a row costs than the curve says."""
        self._ratios: deque[tuple[float, float]] = deque(maxlen=_MEMORY)  # with weights

    def correct(self, ratio: float, weight: float) -> None:
        """Learn from two neighbours: the correction is the weighted median, which starts at 1."""
        self._ratios.append((ratio, weight))
        ranked = sorted([*self._ratios, (1.0, _PRIOR_WEIGHT)])
        half = sum(weight for _, weight in ranked) / 2
        for ratio, weight in ranked:
            half -= weight
            if half <= 0:
                self.correction = ratio
                return


class StepCosts:
    """Seconds of a round by sequences and rows, learned from rounds."""

    def __init__(self, curve: RowCurve | None = None) -> None:
        self.curve = curve or RowCurve()
        self._batches: dict[int, _Batch] = {}
        self._last: tuple[int, int, float] | None = None

    def seconds(self, num_sequences: int) -> Callable[[int], float]:
        """Expected seconds of a round by its rows; on a scale of its own before the first one."""
        batch = self._nearest(num_sequences)
        plain = self.curve(num_sequences)
        unit, correction = 1.0, 1.0
        if batch is not None:
            unit, correction = batch.seconds_per_cost, batch.correction
        return lambda num_rows: unit * (plain + correction * (self.curve(num_rows) - plain))

    def observe(self, num_sequences: int, num_rows: int, seconds: float) -> None:
        """Learn from a round that decoded and did nothing else."""
        batch = self._batches.setdefault(size_class(num_sequences), _Batch())
        if self._last is None or self._last[:2] != (num_sequences, num_rows):
            self._compare(batch, num_sequences, num_rows, seconds)
        plain = self.curve(num_sequences)
        cost = plain + batch.correction * (self.curve(num_rows) - plain)
        if batch.seconds_per_cost == 0.0:
            batch.seconds_per_cost = seconds / cost
        # A round that took ages met something else than its rows.
        unit = min(seconds / cost, 3 * batch.seconds_per_cost)
        batch.seconds_per_cost += _SMOOTHING * (unit - batch.seconds_per_cost)
        self._last = num_sequences, num_rows, seconds

    def interrupted(self) -> None:
        """Something else came between: the next round has no neighbour."""
        self._last = None

    def _compare(self, batch: _Batch, num_sequences: int, num_rows: int, seconds: float) -> None:
        """Learn what rows cost from a neighbour with the same sequences and other rows."""
        if self._last is None or self._last[0] != num_sequences or not batch.seconds_per_cost:
            return
        _, last_rows, last_seconds = self._last
        if abs(num_rows - last_rows) < 2:
            return  # noise
        difference = self.curve(num_rows) - self.curve(last_rows)
        ratio = (seconds - last_seconds) / batch.seconds_per_cost / difference
        ratio = min(max(0.0, ratio), _MOST_CORRECTION)
        batch.correct(ratio, abs(num_rows - last_rows))

    def _nearest(self, num_sequences: int) -> _Batch | None:
        """Of batches of that size, or of the most similar size there has been."""
        if not self._batches:
            return None
        wanted = size_class(num_sequences)
        return self._batches[min(self._batches, key=lambda size: (abs(size - wanted), size))]
