"""What forwards of some rows take, timed once before anybody is served."""

from __future__ import annotations

import statistics
import time

from outrider_runtime.model.kv_pool import OutOfBlocks
from outrider_runtime.model.runner import Runner, SequenceRows

from outrider_target.drafting.pricing.step_costs import MEASURED_ROWS, Measured

_REPETITIONS = 5
_MOST_SECONDS = 0.5
"""After so long no further size is timed: a model so slow is measured by its rounds."""


def time_forwards(runner: Runner) -> list[Measured]:
    """Forwards of one sequence with few rows to many, each a median of several in turn."""
    began = time.monotonic()
    measured: list[Measured] = []
    try:
        for num_rows in MEASURED_ROWS:
            if num_rows > runner.max_model_len:
                break
            _time_one(runner, num_rows)  # the first of its kind may compile something
            seconds = [_time_one(runner, num_rows) for _ in range(_REPETITIONS)]
            measured.append(Measured(num_rows, statistics.median(seconds)))
            if time.monotonic() - began > _MOST_SECONDS:
                break
    except OutOfBlocks:
        pass  # a cache so small holds no longer sequence either
    return measured


def _time_one(runner: Runner, num_rows: int) -> float:
    handle = runner.pool.create()
    try:
        began = time.monotonic()
        logits = runner.forward([SequenceRows(handle, [0] * num_rows, num_rows)])
        float(logits[0, 0])  # a device may still be computing
        return time.monotonic() - began
    finally:
        runner.pool.free(handle)
