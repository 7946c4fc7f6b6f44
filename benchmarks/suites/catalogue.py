"""The suites by name, and the set that `make bench` runs when nobody says which."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from benchmarks.suites import (
    concurrency,
    long_context,
    mixed,
    programs,
    scaling,
    shared_prefix,
    single_stream,
)
from benchmarks.suites.options import Options

Suite = Callable[[Options], Iterator[dict[str, Any]]]

SUITES: Mapping[str, Suite] = {
    "single-stream": single_stream.run,
    "concurrency": concurrency.run,
    "long-context": long_context.run,
    "mixed": mixed.run,
    "shared-prefix": shared_prefix.run,
    "link": programs.link,
    "overhead": programs.overhead,
    "scaling": scaling.run,
}

# About ten minutes on two cores, with every peer installed.
DEFAULT: Sequence[tuple[str, Mapping[str, Any]]] = (
    ("single-stream", {"prompts": 4}),
    ("concurrency", {"streams": (1, 4, 16), "new_tokens": 32}),
    ("single-stream", {"pairs": ("100m",), "temperatures": (0.0,), "prompts": 2}),
    ("scaling", {"repetitions": 3, "streams": (1, 4, 16)}),
)
