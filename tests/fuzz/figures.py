"""What a fuzz run came to, printed, and written down where `make fuzz` wants it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

REPORT = os.environ.get("OUTRIDER_FUZZ_REPORT")
"""A file that gets a line of JSON from each run."""


@contextmanager
def told(what: str, num_frames: int, seen: Mapping[str, int]) -> Iterator[None]:
    """Tell of the run in this block if nothing in it failed."""
    started = time.monotonic()
    yield
    seconds = round(time.monotonic() - started, 1)
    line = json.dumps(
        {"what": what, "frames": num_frames, "seconds": seconds, "seen": dict(seen), "crashes": 0}
    )
    print(line)
    if REPORT is not None:
        with Path(REPORT).open("a", encoding="utf-8") as report:
            report.write(line + "\n")
