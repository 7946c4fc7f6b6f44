"""What rows cost is measured rightly on a machine that does other things as well."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from outrider_runtime.model.batch import SequenceRows
from outrider_runtime.model.kv_pool import KVPool
from outrider_runtime.model.runner import Runner
from outrider_target.drafting.pricing.step_costs import MEASURED_ROWS
from outrider_target.engine import forward_times
from outrider_target.engine.forward_times import time_forwards


class BusyMachine:
    """A model whose forwards take 1 ms and 0.1 ms a row; three of five meet something else."""

    def __init__(self, *, max_model_len: int = 1000, slowness: float = 1.0) -> None:
        self.pool = KVPool(8, 16)
        self.max_model_len = max_model_len
        self.now = 0.0
        self.num_forwards = 0
        self._slowness = slowness
        self._disturbed = itertools.cycle([True, True, False, True, False])

    def seconds(self, num_rows: int) -> float:
        return self._slowness * (1e-3 + 1e-4 * num_rows)

    def forward(self, batch: Sequence[SequenceRows]) -> torch.Tensor:
        self.num_forwards += 1
        (rows,) = batch
        self.pool.append(rows.handle, len(rows.token_ids))
        self.now += self.seconds(len(rows.token_ids)) + next(self._disturbed) * 6e-3
        return torch.zeros(len(rows.token_ids), 4)


def on(machine: BusyMachine, monkeypatch: pytest.MonkeyPatch) -> Runner:
    clock = SimpleNamespace(monotonic=lambda: machine.now)
    monkeypatch.setattr(forward_times, "time", clock)
    return cast("Runner", machine)


def test_a_busy_machine_does_not_make_rows_dearer(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = BusyMachine()
    measured = time_forwards(on(machine, monkeypatch))
    assert [one.num_rows for one in measured] == list(MEASURED_ROWS)
    for one in measured:
        assert one.seconds == pytest.approx(machine.seconds(one.num_rows))
    assert machine.pool.num_sequences == 0


def test_a_slow_model_is_not_measured_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = BusyMachine(slowness=1000.0)
    measured = time_forwards(on(machine, monkeypatch))
    assert [one.num_rows for one in measured] == [1, 2]
    assert machine.num_forwards == 2


def test_what_fits_neither_model_nor_cache_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = BusyMachine(max_model_len=10)
    machine.pool = KVPool(1, 4)
    measured = time_forwards(on(machine, monkeypatch))
    assert [one.num_rows for one in measured] == [1, 2, 4]
