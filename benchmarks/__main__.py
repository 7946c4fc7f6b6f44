"""`python -m benchmarks`: runs suites, prints tables, writes dated JSON and pictures.

Everybody takes turns in each repetition; what is said of speed are ratios. `--compare` shows the
newest run of each suite against the one before.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import re
import signal
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import plots
from benchmarks.comparison import compare
from benchmarks.pairs.catalogue import PAIRS
from benchmarks.report import RESULTS, report, write
from benchmarks.suites.catalogue import DEFAULT, SUITES
from benchmarks.suites.options import Options
from benchmarks.tables import table

_PICTURES = Path("build/bench")


def main() -> None:
    """Run, print, write; or compare."""
    options, chosen, comparing = _arguments()
    # Else services and peers would outlive a run that is ended from outside.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    # Wide enough for the tables where the output is no terminal.
    console = Console(width=None if Console().is_terminal else 160)
    if comparing:
        _compare(chosen or list(SUITES), options.output, console)
    elif chosen:
        for suite in chosen:
            _run(suite, options, console)
    else:
        for suite, changes in DEFAULT:
            _run(suite, dataclasses.replace(options, **changes), console)


def _run(suite: str, options: Options, console: Console) -> None:
    began = time.perf_counter()
    cells: list[dict[str, Any]] = []
    for cell in SUITES[suite](options):
        cells.append(cell)
        if "program" not in cell:
            console.print(table(cell))
    result = report(suite, cells, time.perf_counter() - began)
    console.print(f"{suite}: {result['seconds']:.0f} s, written to {write(result, options.output)}")
    pictures = plots.plot(result, _PICTURES)
    if pictures is None:
        console.print("no pictures: matplotlib is not installed (the extra `bench`)")
    elif pictures:
        console.print(f"pictures in {_PICTURES}")


def _compare(suites: list[str], folder: Path, console: Console) -> None:
    for suite in suites:
        tables = compare(suite, folder)
        if not tables:
            console.print(f"{suite}: no earlier run has measured the same")
        for each in tables:
            console.print(each)


def _arguments() -> tuple[Options, list[str], bool]:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__.partition("\n\n")[0]
    )
    add = parser.add_argument
    add("--suite", action="append", choices=tuple(SUITES), help="may repeat; default: some of all")
    add("--compare", action="store_true", help="the newest run of each suite against the last")
    add("--repetitions", type=_positive, default=5)
    add("--pairs", nargs="+", choices=PAIRS, help="model pairs; default: the shipped one")
    add("--streams", nargs="+", type=_positive, help="requests at a time")
    add("--temperatures", nargs="+", type=_temperature, help="0 is greedy")
    add("--prompts", type=_positive, help="prompts of each workload")
    add("--new-tokens", type=_positive, help="tokens for each prompt")
    add(
        "--only",
        nargs="+",
        type=_pattern,
        default=[],
        help="regular expressions: the contenders that take part",
    )
    add("--output", type=Path, default=RESULTS, help="folder of the JSON")
    given = vars(parser.parse_args())
    chosen, comparing = given.pop("suite"), given.pop("compare")
    return Options(**given), chosen or [], comparing


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {number}")
    return number


def _temperature(text: str) -> float:
    number = float(text)
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"must be at least 0 and finite, not {text}")
    return number


def _pattern(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"no regular expression: {error}") from None
    return text


if __name__ == "__main__":
    main()
