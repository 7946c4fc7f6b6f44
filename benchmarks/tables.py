"""Cells of a report as tables for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.table import Table

from benchmarks.measurement import ratio

_OURS = "Outrider"


def table(cell: Mapping[str, Any]) -> Table:
    """A cell with contenders, or a series."""
    return _series(cell) if "series" in cell else _contenders(cell)


def title(cell: Mapping[str, Any]) -> str:
    """What a cell is about, in one line."""
    if "series" in cell:
        return f"by {cell['unit']}"
    mode = f"T={cell['temperature']:g}" if cell["temperature"] else "greedy"
    streams = "1 stream" if cell["streams"] == 1 else f"{cell['streams']} streams"
    return f"pair {cell['pair']}, {cell['text']}, {streams}, {mode}"


def fastest_of_ours(cell: Mapping[str, Any]) -> str | None:
    """The contender of Outrider's that the others are compared with."""
    rows = {name: row for name, row in cell["rows"].items() if name.startswith(_OURS)}
    return max(rows, key=lambda name: rows[name]["tokens_per_second"]) if rows else None


def main_figure(series: Mapping[str, Any]) -> str:
    """What a series is about: the first that its points tell."""
    names: Iterator[str] = (name for name in series["points"][0] if name != "x")
    return next(names)


def _contenders(cell: Mapping[str, Any]) -> Table:
    ours = fastest_of_ours(cell)
    made = Table(title=title(cell), title_justify="left")
    columns = (
        "", "tokens/s", "times as fast is Outrider", "first token ms", "ms/token p50", "p99",
        "accepted", "peak MB", "same text",
    )  # fmt: skip
    for column in columns:
        made.add_column(column, justify="right" if column else "left")
    for name, row in cell["rows"].items():
        times = None if ours is None else ratio(cell, ours, name)
        made.add_row(
            name,
            f"{row['tokens_per_second']:.0f}",
            "" if times is None or name == ours else f"{times:.2f}",
            _number(row["time_to_first_token_ms"], "p50", 1),
            _number(row["time_per_output_token_ms"], "p50", 2),
            _number(row["time_per_output_token_ms"], "p99", 2),
            f"{row['acceptance']:.0%}" if row["acceptance"] else "",
            f"{row['peak_memory_mb']:.0f}" if row["peak_memory_mb"] else "",
            "" if cell["temperature"] else f"{row['same_text']}/{cell['prompts']}",
        )
    for name, reason in cell["absent"].items():
        made.add_row(name, "missing", reason)
    return made


def _series(cell: Mapping[str, Any]) -> Table:
    made = Table(title=title(cell), title_justify="left")
    names = [name for name in cell["points"][0] if not name.endswith("_runs") and name != "x"]
    made.add_column(cell["unit"])
    for name in names:
        made.add_column(name.replace("_", " "), justify="right")
    for point in cell["points"]:
        made.add_row(str(point["x"]), *(f"{point[name]:.2f}" for name in names))
    if "slope_ms_per_1000" in cell:
        made.caption = f"{cell['slope_ms_per_1000']:.3f} ms more for each 1000 {cell['unit']}"
    return made


def _number(quantiles: Mapping[str, float] | None, name: str, digits: int) -> str:
    return "" if quantiles is None else f"{quantiles[name]:.{digits}f}"
