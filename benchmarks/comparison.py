"""`make bench-compare`: this run of each suite against the last."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from benchmarks.measurement import ratio
from benchmarks.report import dated
from benchmarks.tables import fastest_of_ours, main_figure, title

_NOTABLE = 0.05


def compare(suite: str, folder: Path) -> list[Table]:
    """A table for each cell of the newest run, against the last run that has it as well."""
    runs = [json.loads(path.read_text()) for path in reversed(dated(suite, folder))]
    if not runs:
        return []
    after, *earlier = runs
    tables = []
    for key, cell in _cells(after).items():
        before = next((run for run in earlier if key in _cells(run)), None)
        if before is not None:
            tables.append(_table(_cells(before)[key], cell, before["date"], after["date"]))
    return tables


def _cells(run: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Programs of their own have their own figures, which nothing here can compare."""
    return {_key(cell): cell for cell in run["cells"] if "program" not in cell}


def _key(cell: Mapping[str, Any]) -> str:
    return title(cell) if "series" in cell else f"{title(cell)}, {cell['new_tokens']}"


def _table(before: Mapping[str, Any], after: Mapping[str, Any], was: str, now: str) -> Table:
    """Ratios are compared where there is somebody else to compare with, else absolute times."""
    made = Table(title=title(after), title_justify="left")
    for column in ("", was, now, "change"):
        made.add_column(column, justify="right" if column else "left")
    rows = _points(before, after) if "series" in after else _ratios(before, after)
    for name, old, new in rows:
        change = new / old - 1
        mark = "" if abs(change) < _NOTABLE else ("bold" if change > 0 else "italic")
        made.add_row(name, f"{old:.2f}", f"{new:.2f}", f"{change:+.0%}", style=mark)
    return made


def _ratios(
    before: Mapping[str, Any], after: Mapping[str, Any]
) -> Iterator[tuple[str, float, float]]:
    ours = fastest_of_ours(after)
    for name in after["rows"]:
        if name == ours or name not in before["rows"]:
            continue
        if ours is None or ours not in before["rows"]:
            speeds = (cell["rows"][name]["tokens_per_second"] for cell in (before, after))
            yield (f"{name}, tokens/s", *speeds)
            continue
        old, new = ratio(before, ours, name), ratio(after, ours, name)
        if old is not None and new is not None:
            yield f"{ours} ÷ {name}", old, new


def _points(
    before: Mapping[str, Any], after: Mapping[str, Any]
) -> Iterator[tuple[str, float, float]]:
    name = main_figure(after)
    earlier = {point["x"]: point[name] for point in before["points"] if name in point}
    for point in after["points"]:
        if (old := earlier.get(point["x"])) is not None:
            yield f"{point['x']} {after['unit']}, {name.replace('_', ' ')}", old, point[name]
