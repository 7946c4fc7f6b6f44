"""docs/observability.md lists the metrics that running services export: these and no others."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import grpc
import pytest
from observability.pages import ON_DEMAND, Page, Pair
from outrider_client import InvalidRequestError
from outrider_runtime.interceptors import CallEnd
from outrider_target.serving.caller_metrics import CallerMetrics
from prometheus_client import CollectorRegistry, generate_latest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "observability.md"


class Row(NamedTuple):
    """A line of a table."""

    name: str
    kind: str
    labels: str
    unit: str
    meaning: str

    def __str__(self) -> str:
        return f"| `{self.name}` | {' | '.join(self[1:])} |"


def documented(service: str) -> dict[str, Row]:
    section = PAGE.read_text().partition(f"\n### {service} service\n")[2].partition("\n#")[0]
    rows = [
        Row(*(cell.strip() for cell in line.strip("|").split("|")))
        for line in section.splitlines()
        if line.startswith("| `")
    ]
    return {row.name.strip("`"): row for row in rows}


def exported(page: Page) -> dict[str, Row]:
    rows = {}
    for family in page.families.values():
        name = family.name + ("_total" if family.type == "counter" else "")
        labels = dict.fromkeys(
            f"`{label}`" for sample in family.samples for label in sample.labels if label != "le"
        )
        rows[name] = Row(name, family.type, ", ".join(labels), "", family.documentation)
    return rows


def test_the_page_lists_what_is_exported_by_caller_as_well() -> None:
    registry = CollectorRegistry()
    metrics = CallerMetrics(registry)
    metrics.observe(CallEnd("/a.Service/Generate", grpc.StatusCode.OK, 1.0, None, "anna"))
    metrics.count_tokens("anna", prompt=1, generated=2)
    section = PAGE.read_text().partition("\n### By caller\n")[2].partition("\n#")[0]
    shown = exported(Page.of(generate_latest(registry).decode()))
    assert len(shown) == 3
    for row in shown.values():
        start = f"| `{row.name}` | {row.kind} | {row.labels} | "
        assert re.search(re.escape(start) + r"\w+ \| " + re.escape(row.meaning), section), start


@pytest.mark.parametrize("service", ["Target", "Draft"])
def test_the_page_lists_exactly_what_is_exported(pair: Pair, service: str) -> None:
    pair.generate("abcabc")
    with pytest.raises(InvalidRequestError):
        pair.client.generate("")
    listed = documented(service)
    shown = exported(pair.target_page() if service == "Target" else pair.draft_page())
    listed.pop(f"outrider_{ON_DEMAND}", None)
    missing = [str(row) for name, row in shown.items() if name not in listed]
    assert not missing, "add these rows, with a unit"
    assert not listed.keys() - shown.keys(), "the service does not export these"
    for name, row in shown.items():
        told = listed[name]
        assert told.unit, f"{name} has no unit"
        assert (told.kind, told.meaning) == (row.kind, row.meaning)
        if row.labels:  # those of a family without samples are not to be seen
            assert told.labels == row.labels, name


def test_units_are_those_in_the_names() -> None:
    for row in [*documented("Target").values(), *documented("Draft").values()]:
        for unit in ("seconds", "bytes"):
            in_name = re.search(f"_{unit}(_total)?`", row.name) is not None
            assert (row.unit == unit) == in_name, row.name
