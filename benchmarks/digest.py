"""`python -m benchmarks.digest FILE...`: reports as one Markdown table, how many times as fast."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.measurement import ratio
from benchmarks.tables import fastest_of_ours, title


def digest(cells: Sequence[Mapping[str, Any]]) -> str:
    """A column for each cell: by how much the fastest of Outrider's is ahead of each other.

    Below 1 the other is ahead. In the last line the tokens a second that all are compared with.
    """
    measured = [cell for cell in cells if fastest_of_ours(cell)]
    names = {name: None for cell in measured for name in [*cell["rows"], *cell["absent"]]}
    lines = ["|".join(["| Outrider is times as fast as", *map(title, measured), ""])]
    lines.append("|---" * (len(measured) + 1) + "|")
    lines += [
        "|".join([f"| {name}", *(_times(cell, name) for cell in measured), ""]) for name in names
    ]
    speeds = (
        f"{cell['rows'][fastest_of_ours(cell)]['tokens_per_second']:.0f}" for cell in measured
    )
    lines.append("|".join(["| Outrider, tokens/s", *speeds, ""]))
    return "\n".join(lines)


def _times(cell: Mapping[str, Any], name: str) -> str:
    ours = fastest_of_ours(cell)
    assert ours is not None
    if name == ours:
        return "(the fastest)"
    times = ratio(cell, ours, name)
    if times is not None:
        return f"{times:.2f}"
    return "missing" if name in cell["absent"] else ""


def main() -> None:
    """Print the table of all files together."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", type=Path, nargs="+")
    files = parser.parse_args().files
    cells = [cell for path in files for cell in json.loads(path.read_text())["cells"]]
    print(digest([cell for cell in cells if "rows" in cell]))


if __name__ == "__main__":
    main()
