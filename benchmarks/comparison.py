"""`make bench-compare`: this run of each suite against the last."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from benchmarks.measurement import ratio
from benchmarks.report import last
from benchmarks.tables import fastest_of_ours, title

_NOTABLE = 0.05


def compare(suite: str, folder: Path) -> list[Table] | None:
    """A table for each cell that both runs have; None where there are not two runs."""
    newest = last(suite, folder, 2)
    if len(newest) < 2:
        return None
    before, after = (json.loads(path.read_text()) for path in newest)
    earlier = {_key(cell): cell for cell in before["cells"]}
    both = [(earlier[_key(cell)], cell) for cell in after["cells"] if _key(cell) in earlier]
    return [_table(old, new, before["date"], after["date"]) for old, new in both]


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
    earlier = {point["x"]: point for point in before["points"]}
    for point in after["points"]:
        if point["x"] in earlier:
            old = earlier[point["x"]]["ms_per_token"]
            yield f"{point['x']} {after['unit']}, ms/token", old, point["ms_per_token"]
