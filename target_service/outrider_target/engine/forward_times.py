"""What forwards of some rows take, timed once before anybody is served."""

from __future__ import annotations

import time
from collections.abc import Sequence

from outrider_runtime.model.batch import SequenceRows
from outrider_runtime.model.kv_pool import OutOfBlocks
from outrider_runtime.model.runner import Runner

from outrider_target.drafting.pricing.step_costs import MEASURED_ROWS, Measured

_SWEEPS = 6
_MOST_SECONDS = 2.0
"""After so long nothing more is timed: a model so slow is measured by its rounds."""


def time_forwards(runner: Runner) -> list[Measured]:
    """Forwards of one sequence with few rows to many, each the fastest of several.

    The fastest, because whatever else a machine does only makes one slower: medians were off by a
    factor of four on a busy one, and rows are priced by what is measured here. In sweeps, because a
    machine may be busy for a while, and the first forward of a kind may compile something.
    """
    began = time.monotonic()
    fastest: dict[int, float] = {}
    sizes: Sequence[int] = [rows for rows in MEASURED_ROWS if rows <= runner.max_model_len]
    for _ in range(_SWEEPS):
        for num_rows in sizes:
            if time.monotonic() - began > _MOST_SECONDS:
                break
            try:
                seconds = _time_one(runner, num_rows)
            except OutOfBlocks:
                break  # a cache so small holds no longer sequence either
            fastest[num_rows] = min(seconds, fastest.get(num_rows, seconds))
        sizes = list(fastest)
    return [Measured(num_rows, seconds) for num_rows, seconds in fastest.items()]


def _time_one(runner: Runner, num_rows: int) -> float:
    handle = runner.pool.create()
    try:
        began = time.monotonic()
        logits = runner.forward([SequenceRows(handle, [0] * num_rows, num_rows)])
        float(logits[0, 0])  # a device may still be computing
        return time.monotonic() - began
    finally:
        runner.pool.free(handle)
