"""Reports as PNG, where matplotlib is installed (the extra `bench`)."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.tables import main_figure, title

_OURS_COLOUR = "#c1440e"
_THEIR_COLOUR = "#8a9ba8"


def plot(result: Mapping[str, Any], folder: Path) -> list[Path] | None:
    """Write the pictures of a report; None without matplotlib."""
    if importlib.util.find_spec("matplotlib") is None:
        return None
    import matplotlib

    matplotlib.use("agg")
    folder.mkdir(parents=True, exist_ok=True)
    stem = folder / result["suite"]
    cells: Sequence[Mapping[str, Any]] = result["cells"]
    with_rows = [cell for cell in cells if cell.get("rows")]
    written = []
    if with_rows:
        written.append(_bars(with_rows, stem.with_suffix(".png")))
    over_streams = _by_streams(with_rows)
    for name, group in over_streams.items():
        written.append(_lines_over_streams(group, folder / f"{result['suite']}-{name}-streams.png"))
    return written + [
        _line(cell, folder / f"{result['suite']}-{cell['series']}.png")
        for cell in cells
        if "series" in cell
    ]


def _bars(cells: Sequence[Mapping[str, Any]], path: Path) -> Path:
    """Tokens a second of every contender, a panel for each cell."""
    from matplotlib.figure import Figure

    height = sum(0.6 + 0.28 * len(cell["rows"]) for cell in cells)
    figure = Figure(figsize=(9, height + 0.5), layout="constrained")
    ratios = [len(cell["rows"]) for cell in cells]
    panels = figure.subplots(len(cells), squeeze=False, gridspec_kw={"height_ratios": ratios})
    for panel, cell in zip(panels[:, 0], cells, strict=True):
        names = list(cell["rows"])[::-1]
        speeds = [cell["rows"][name]["tokens_per_second"] for name in names]
        bars = panel.barh(names, speeds, color=[_colour(name) for name in names])
        panel.bar_label(bars, fmt="%.0f", padding=3, fontsize=8)
        panel.set_title(f"{title(cell)}: tokens/s", fontsize=9, loc="left")
        panel.tick_params(labelsize=8)
        panel.margins(x=0.12)
    figure.savefig(path, dpi=120)
    return path


def _by_streams(cells: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for cell in cells:
        groups.setdefault(f"{cell['pair']}-T{cell['temperature']:g}", []).append(cell)
    return {name: group for name, group in groups.items() if len({c["streams"] for c in group}) > 2}


def _lines_over_streams(cells: Sequence[Mapping[str, Any]], path: Path) -> Path:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5.5), layout="constrained")
    panel = figure.subplots()
    for name in {name: None for cell in cells for name in cell["rows"]}:
        points = [
            (cell["streams"], cell["rows"][name]["tokens_per_second"])
            for cell in cells
            if name in cell["rows"]
        ]
        width = 2.2 if name.startswith("Outrider") else 1.2
        panel.plot(*zip(*points, strict=True), marker="o", label=name, linewidth=width)
    panel.set_xscale("log", base=2)
    panel.set_yscale("log")
    panel.set_xlabel("streams")
    panel.set_ylabel("tokens/s")
    panel.grid(alpha=0.3)
    panel.legend(fontsize=8)
    figure.savefig(path, dpi=120)
    return path


def _line(series: Mapping[str, Any], path: Path) -> Path:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    panel = figure.subplots()
    points, name = series["points"], main_figure(series)
    panel.plot(
        [point["x"] for point in points],
        [point[name] for point in points],
        marker="o",
        color=_OURS_COLOUR,
    )
    panel.set_xlabel(series["unit"])
    panel.set_ylabel(name.replace("_", " "))
    panel.set_ylim(bottom=0)
    panel.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
    return path


def _colour(name: str) -> str:
    return _OURS_COLOUR if name.startswith("Outrider") else _THEIR_COLOUR
