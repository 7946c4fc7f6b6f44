"""Where kernels that were compiled ahead of time lie, for machines without a compiler: images.

They are compiled for a level of processor features instead of one processor; the highest level that
the machine has is taken. Knows nothing of compilers.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch

from outrider_runtime import cpp

FOLDER = Path(__file__).parent / "built"
"""Beside the sources, so that they travel with the environment."""
SOURCES = ("linear.cpp", "linear_int8.cpp", "attention.cpp", "norm.cpp", "step.cpp")
HEADERS = ("lanes.h", "panels.h")


class Level(NamedTuple):
    """A set of processor features with a name that compilers know."""

    name: str
    features: frozenset[str]
    """As /proc/cpuinfo spells those that are more than any such processor has."""


_V3 = frozenset(("avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe"))
_V4 = frozenset(("avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"))

LEVELS = (Level("x86-64-v4", _V3 | _V4), Level("x86-64-v3", _V3))
"""The psABI's, best first. Other architectures have none: there the kernels are compiled at the
first start."""


def place(level: Level) -> Path:
    """Where the library for a level lies, or would: another torch or source has another."""
    parts = [torch.__version__.encode(), *map(source, SOURCES + HEADERS)]
    return FOLDER / f"{level.name}-{cpp.digest(*parts)}.so"


def find() -> Path | None:
    """The best library there is for this machine's processor; None without one."""
    features = processor_features()
    for level in LEVELS:
        if level.features <= features and (library := place(level)).exists():
            return library
    return None


def processor_features() -> frozenset[str]:
    """What this machine's processor can do."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        word, _, value = line.partition(":")
        if word.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return frozenset()


def source(name: str) -> bytes:
    """One of the files the library is made of."""
    return (Path(__file__).parent / name).read_bytes()
