"""How long a fuzz run is: a moment with the other tests, as long as asked with `make fuzz`."""

from __future__ import annotations

import os

import pytest

NUM_FRAMES = int(os.environ.get("OUTRIDER_FUZZ_FRAMES", "100000"))
SEED = int(os.environ.get("OUTRIDER_FUZZ_SEED", "0"))


def lengths(short: int) -> pytest.MarkDecorator:
    """Parametrises a test with `num_frames`."""
    long = pytest.param(NUM_FRAMES, marks=[pytest.mark.fuzz, pytest.mark.timeout(7200)], id="long")
    return pytest.mark.parametrize("num_frames", [pytest.param(short, id="short"), long])
