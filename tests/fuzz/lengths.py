"""How long a fuzz run is: a moment with the other tests, as long as asked with `make fuzz`."""

from __future__ import annotations

import os

import pytest

NUM_FRAMES = int(os.environ.get("OUTRIDER_FUZZ_FRAMES", "1000000"))
"""Of all tests together: most to what takes them fastest, least to what answers each."""
SEED = int(os.environ.get("OUTRIDER_FUZZ_SEED", "0"))


def lengths(short: int, *, share: float) -> pytest.MarkDecorator:
    """Parametrises a test with `num_frames`; `share` is its part of a long run's."""
    long = pytest.param(
        round(NUM_FRAMES * share), marks=[pytest.mark.fuzz, pytest.mark.timeout(7200)], id="long"
    )
    return pytest.mark.parametrize("num_frames", [pytest.param(short, id="short"), long])
