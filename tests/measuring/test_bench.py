"""The benchmark suite: who takes part, what is compared, what is shown."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from outrider_demo import DRAFT_DIR
from rich.console import Console
from rich.table import Table

from benchmarks import plots
from benchmarks.comparison import compare
from benchmarks.contenders import Arrival, Outcome, Workload
from benchmarks.digest import digest
from benchmarks.measurement import Field, ratio
from benchmarks.pairs.catalogue import Pair
from benchmarks.peers import catalogue
from benchmarks.peers.process import PeerFailed, PeerProcess
from benchmarks.report import report, write
from benchmarks.tables import table
from benchmarks.tuning import Tuned

WORK = Workload([[1, 2, 3]], 1, False, 4)


@dataclass
class Scripted:
    """A contender that takes the seconds it is told, one after another."""

    name: str
    seconds: Sequence[float]
    fails: bool = False
    runs: int = field(default=0, init=False)

    def run(self, work: Workload) -> Outcome:
        if self.fails:
            raise PeerFailed("it has no engine")
        taken = self.seconds[self.runs % len(self.seconds)]
        self.runs += 1
        return Outcome(4, taken, 0.0, [(5, 6, 7, 8)], {}, [Arrival(taken / 4, taken)])


def tuned(name: str, *seconds: float, fails: bool = False) -> Tuned:
    return Tuned(name, [Scripted(name, seconds, fails)])


def cell(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, Any]:
    """What is measured of Outrider and a peer that take these seconds in turn."""
    # The first run of each warms up.
    known = Field([tuned("Outrider plain", 9, *ours), tuned("peer", 9, *theirs)])
    known.absent["another peer"] = "not installed: another"
    return {"pair": "shipped", "text": "code", **known.measure(WORK, len(ours))}


def test_a_ratio_is_the_median_of_the_ratios_within_a_repetition() -> None:
    """One slow repetition of a busy machine is slow for both, and cancels out."""
    measured = cell([1, 10, 1], [2, 20, 3])
    assert ratio(measured, "Outrider plain", "peer") == pytest.approx(2)
    assert ratio(measured, "peer", "Outrider plain") == pytest.approx(0.5)
    assert ratio(measured, "Outrider plain", "another peer") is None


def test_times_are_those_of_the_tokens() -> None:
    row = cell([1.0, 1.0, 1.0], [2.0, 2.0, 2.0])["rows"]["Outrider plain"]
    assert row["tokens_per_second"] == pytest.approx(4)
    assert row["time_to_first_token_ms"]["p50"] == pytest.approx(250)
    assert row["time_per_output_token_ms"]["p99"] == pytest.approx(250)


def test_a_peer_that_fails_is_missing_and_not_beaten() -> None:
    known = Field([tuned("Outrider plain", 1), tuned("peer", 1, fails=True)])
    measured = {"pair": "shipped", "text": "code", **known.measure(WORK, 2)}
    assert list(measured["rows"]) == ["Outrider plain"]
    assert measured["absent"] == {"peer": "failed: it has no engine"}
    assert "failed: it has no engine" in shown(table(measured))


def test_a_peer_that_is_not_installed_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = catalogue.EngineEntry("nowhere:Engine", ("json", "no_such_engine"))
    monkeypatch.setattr(catalogue, "ENGINES", {"nowhere": entry})
    assert catalogue.missing("nowhere") == "not installed: no_such_engine"
    monkeypatch.setattr(
        catalogue, "ENGINES", {"here": catalogue.EngineEntry("here:Engine", ("json",))}
    )
    assert catalogue.missing("here") is None


def test_every_way_to_run_a_peer_has_an_engine_and_settings() -> None:
    for peer in catalogue.PEERS:
        assert peer.engine in catalogue.ENGINES
        assert peer.settings


def test_the_fastest_setting_is_chosen() -> None:
    contender = Tuned(
        "peer", [Scripted("slow", [3]), Scripted("fast", [1.5, 1]), Scripted("", [1.2])]
    )
    contender.tune(WORK)
    assert contender.chosen.name == "fast"


def test_who_cannot_sample_stays_away_from_sampling() -> None:
    greedy = Tuned("greedy alone", [Scripted("", [1])], samples=False)
    known = Field([tuned("Outrider plain", 1), greedy])
    assert "greedy alone" not in known.measure(WORK._replace(sampled=True), 1)["rows"]
    assert "greedy alone" in known.measure(WORK, 1)["rows"]


def test_a_table_says_how_many_times_as_fast_outrider_is_and_who_is_missing() -> None:
    text = shown(table(cell([1, 1, 1], [2.5, 2.5, 2.5])))
    assert "2.50" in text
    assert "another peer" in text
    assert "not installed: another" in text


def test_a_digest_has_a_column_for_each_cell_and_says_who_is_missing() -> None:
    cells = [cell([1, 1, 1], [2.5, 2.5, 2.5]), {**cell([1], [0.5]), "streams": 16}]
    _, _, ours, peer, absent, speed = digest(cells).splitlines()
    assert ours == "| Outrider plain|(the fastest)|(the fastest)|"
    assert peer == "| peer|2.50|0.50|"
    assert absent == "| another peer|missing|missing|"
    assert speed == "| Outrider, tokens/s|4|4|"


def test_a_run_is_compared_with_the_last_of_its_suite(tmp_path: Path) -> None:
    assert compare("mixed", tmp_path) == []
    keep("mixed", 1, [cell([1.0] * 3, [9.0] * 3)], tmp_path)
    assert compare("mixed", tmp_path) == []
    keep("mixed", 2, [cell([1.0] * 3, [2.0] * 3)], tmp_path)
    # Something else was measured in between.
    keep("mixed", 3, [{**cell([1.0] * 3, [5.0] * 3), "streams": 9}, {"program": "x"}], tmp_path)
    keep("mixed", 5, [cell([1.0] * 3, [3.0] * 3)], tmp_path)
    keep("mixed-up", 4, [cell([1.0] * 3, [7.0] * 3)], tmp_path)
    (only,) = compare("mixed", tmp_path)
    text = shown(only)
    assert "Outrider plain ÷ peer" in text
    assert "2.00" in text
    assert "3.00" in text
    assert "+50%" in text


def test_a_series_is_shown_and_compared_by_its_points(tmp_path: Path) -> None:
    for day, last in ((1, 4.0), (2, 5.0)):
        points = [{"x": 1, "ms_per_token": 2.0}, {"x": 64, "ms_per_token": last}]
        series = {"series": "streams", "unit": "streams", "points": points}
        keep("scaling", day, [series], tmp_path)
    assert "64" in shown(table(series))
    assert "+25%" in shown(compare("scaling", tmp_path)[0])


def test_pictures_are_drawn_where_there_is_a_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    cells = [{**cell([1, 1, 1], [2, 2, 2]), "streams": streams} for streams in (1, 4, 16)]
    points = [{"x": 1, "ms_per_token": 2.0}, {"x": 64, "ms_per_token": 3.0}]
    series = {"series": "context", "unit": "tokens of context", "points": points}
    written = plots.plot({"suite": "concurrency", "cells": [*cells, series]}, tmp_path)
    assert written is not None
    assert [path.name for path in written] == [
        "concurrency.png",
        "concurrency-shipped-T0-streams.png",
        "concurrency-context.png",
    ]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert plots.plot({"suite": "concurrency", "cells": cells}, tmp_path) is None


def test_a_peer_in_its_process_answers_as_it_does_alone() -> None:
    """transformers, where the draft is the target itself: the same text, all of it accepted."""
    pair = Pair("itself", DRAFT_DIR, DRAFT_DIR)
    work = Workload([list(range(40, 60))], 1, False, 12)
    assistant = {
        "num_assistant_tokens": 4,
        "num_assistant_tokens_schedule": "constant",
        "assistant_confidence_threshold": 0.0,
    }
    with PeerProcess("transformers", pair) as process:
        plain = process.run(work, {"mode": "plain", "threads": 1})
        assisted = process.run(work, {"mode": "assisted", "threads": 1, "assistant": assistant})
        assert process.peak_megabytes() > 50
        with pytest.raises(PeerFailed, match="KeyError"):
            process.run(work, {"mode": "plain"})
    assert plain.num_tokens == len(plain.token_ids[0]) == 12
    assert plain.token_ids == assisted.token_ids
    assert plain.acceptance == 0.0
    assert assisted.acceptance > 0.7
    (arrival,) = assisted.arrivals
    assert 0 < arrival.first <= arrival.last <= assisted.seconds


def test_a_peer_that_does_not_start_says_why() -> None:
    nowhere = Pair("nowhere", Path("/no/such/folder"), DRAFT_DIR)
    with pytest.raises(PeerFailed, match="/no/such/folder"), PeerProcess("transformers", nowhere):
        pass


def keep(suite: str, day: int, cells: Sequence[Any], folder: Path) -> None:
    date = f"2026-11-{day:02}T10:00:00+00:00"
    path = write({**report(suite, cells, 1.0), "date": date}, folder)
    assert json.loads(path.read_text())["suite"] == suite


def shown(made: Table) -> str:
    console = Console(width=200)
    with console.capture() as capture:
        console.print(made)
    return capture.get()
