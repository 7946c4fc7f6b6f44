"""A forward takes no more threads than it has cores to itself."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from outrider_runtime.model import threads


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Eight cores, no quota; its file may be written."""
    before = torch.get_num_threads()
    quota = tmp_path / "cpu.max"
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))
    monkeypatch.setattr(threads, "_QUOTA", quota)
    yield quota
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("quota", "cores"),
    [("max 100000\n", 8), ("250000 100000\n", 2), ("50000 100000\n", 1), ("9900000 100000\n", 8)],
)
def test_a_container_uses_no_more_than_its_quota(machine: Path, quota: str, cores: int) -> None:
    assert threads.usable_cores() == 8
    machine.write_text(quota)
    assert threads.usable_cores() == cores


def test_a_neighbour_keeps_its_core(monkeypatch: pytest.MonkeyPatch) -> None:
    threads.choose(None)
    assert torch.get_num_threads() == 8
    threads.choose(None, neighbours=2)
    assert torch.get_num_threads() == 6
    threads.choose(None, neighbours=20)
    assert torch.get_num_threads() == 2
    threads.choose(3, neighbours=2)
    assert torch.get_num_threads() == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    threads.choose(None, neighbours=2)
    assert torch.get_num_threads() == 3


@pytest.mark.parametrize(("cores", "taken"), [(1, 1), (2, 2), (3, 2), (4, 3)])
def test_the_target_and_its_drafter_share_two_cores(
    monkeypatch: pytest.MonkeyPatch, cores: int, taken: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(cores)))
    threads.choose(None, neighbours=1)
    assert torch.get_num_threads() == taken


def test_neighbours_are_those_on_this_machine() -> None:
    here = ["127.0.0.1:1", "127.0.0.9:1", "localhost:50052", "[::1]:1", "dns:///localhost:1"]
    there = ["10.0.0.1:1", "drafts:50052", "dns:///drafts.default.svc:50052", "[fd00::1]:1"]
    assert threads.on_this_machine(here) == len(here)
    assert threads.on_this_machine(there) == 0
