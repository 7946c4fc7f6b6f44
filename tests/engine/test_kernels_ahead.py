"""Kernels compiled ahead of time serve machines that have no compiler."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from engine.compiler import needs_compiler
from outrider_runtime.model.kernels import ahead, library

pytestmark = needs_compiler

LOADING = """
import pathlib, sys, torch
from outrider_runtime.model.kernels import ahead, library
ahead.FOLDER = pathlib.Path(sys.argv[1])
if len(sys.argv) > 2:
    ahead.processor_features = lambda: frozenset(sys.argv[2].split())
library.load()
print(torch.ops.outrider)
"""
"""In a process of its own: one that has the kernels cannot load them a second time."""


def load_without_compiler(folder: Path, *features: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", LOADING, str(folder), *features],
        env={**os.environ, "PATH": "/nonexistent"},
        capture_output=True,
        text=True,
        timeout=100,
    )


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(ahead, "FOLDER", tmp_path)
    return tmp_path


def processor_with(monkeypatch: pytest.MonkeyPatch, features: frozenset[str]) -> None:
    monkeypatch.setattr(ahead, "processor_features", lambda: features)


def test_a_machine_without_a_compiler_takes_what_was_compiled_ahead(folder: Path) -> None:
    worst = ahead.LEVELS[-1]
    features = " ".join(worst.features)
    shutil.copy(library.compiled(), ahead.place(worst))
    run = load_without_compiler(folder, features)
    assert run.returncode == 0, run.stderr
    ahead.place(worst).unlink()
    run = load_without_compiler(folder, features)
    assert "there is no C++ compiler" in run.stderr


def test_the_highest_level_that_the_processor_has_is_taken(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    best, worst = ahead.LEVELS
    for level in ahead.LEVELS:
        ahead.place(level).touch()
    for features, expected in [
        (best.features, ahead.place(best)),
        (best.features - {"avx512vl"}, ahead.place(worst)),
        (worst.features - {"fma"}, None),
    ]:
        processor_with(monkeypatch, features)
        assert ahead.find() == expected
    ahead.place(best).unlink()
    processor_with(monkeypatch, best.features)
    assert ahead.find() == ahead.place(worst)


def test_another_torch_has_another_library(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = ahead.place(ahead.LEVELS[0])
    monkeypatch.setattr("torch.__version__", "9.9.9")
    assert ahead.place(ahead.LEVELS[0]) != before


def test_this_machines_features_are_read() -> None:
    assert len(ahead.processor_features()) > 5


@pytest.mark.slow
def test_every_level_compiles_and_the_machine_runs_on_its_own(folder: Path) -> None:
    made = library.compile_ahead()
    assert made == [ahead.place(level) for level in ahead.LEVELS]
    assert sorted(folder.iterdir()) == sorted(made), "nothing else is left in the package"
    if ahead.find() is None:
        pytest.skip("this processor has not the features of the lowest level")
    run = load_without_compiler(folder)
    assert run.returncode == 0, run.stderr
