"""What the dashboard shows and the rules watch: valid queries for metrics that services export."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import promql_parser as promql
import pytest
import yaml  # type: ignore[import-untyped]  # no stubs among the dependencies
from observability.pages import ON_DEMAND, Pair
from outrider_contract.errors import Reason
from outrider_runtime.errors import OutriderError

ROOT = Path(__file__).resolve().parents[2]
COMPONENT = ROOT / "deploy" / "kubernetes" / "components" / "monitoring"
DASHBOARD: dict[str, Any] = json.loads((COMPONENT / "outrider-dashboard.json").read_text())
ALERTS: dict[str, Any] = yaml.safe_load(
    (ROOT / "deploy" / "monitoring" / "alerts.yaml").read_text()
)
RULES: list[dict[str, Any]] = [rule for group in ALERTS["groups"] for rule in group["rules"]]


def panels() -> Iterator[dict[str, Any]]:
    yield from (panel for panel in DASHBOARD["panels"] if panel["type"] != "row")


def queries() -> Iterator[tuple[str, str]]:
    """Where a query stands, and the query."""
    for panel in panels():
        for target in panel["targets"]:
            yield panel["title"], target["expr"].replace("$__rate_interval", "5m")
    for rule in RULES:
        yield rule["alert"], rule["expr"]


def selectors(expression: Any) -> Iterator[promql.VectorSelector]:
    """All selectors of a query."""
    if isinstance(expression, promql.VectorSelector):
        yield expression
        return
    for name in ("lhs", "rhs", "expr", "param", "vector_selector", "vs"):
        if (part := getattr(expression, name, None)) is not None:
            yield from selectors(part)
    for argument in getattr(expression, "args", ()):
        yield from selectors(argument)


def labels_of(selector: promql.VectorSelector) -> set[str]:
    return {matcher.name for matcher in selector.matchers.matchers}


@pytest.mark.parametrize(("where", "query"), list(queries()))
def test_a_query_is_valid_and_selects_something(where: str, query: str) -> None:
    assert list(selectors(promql.parse(query))) or query == "", where


def test_a_broken_query_is_noticed() -> None:
    with pytest.raises(ValueError, match=r".+"):
        promql.parse("sum(rate(outrider_x_total[5m])")
    assert [
        each.name for each in selectors(promql.parse("1 - sum by (a) (rate(x_sum[5m])) / y"))
    ] == [
        "x_sum",
        "y",
    ]


def test_every_metric_that_is_named_is_exported_with_the_labels_asked_for(pair: Pair) -> None:
    pair.generate("abcabc")
    pages = pair.target_page(), pair.draft_page()
    exported = set().union(*(page.sample_names for page in pages)) | {f"outrider_{ON_DEMAND}"}
    labels: dict[str, set[str]] = {}
    for page in pages:
        for family in page.families.values():
            for sample in family.samples:
                labels.setdefault(sample.name, set()).update(sample.labels)
    from_scraping = {"instance", "job"}
    for where, query in queries():
        for selector in selectors(promql.parse(query)):
            name = selector.name or ""
            if name.startswith(("process_", "up")):
                continue
            assert name in exported, f"{where}: {name}"
            if name in labels:
                unknown = labels_of(selector) - labels[name] - from_scraping
                assert not unknown, f"{where}: {name} has no {unknown}"


def test_every_metric_is_on_the_dashboard(pair: Pair) -> None:
    """A number that nobody looks at need not be exported."""
    pair.generate("abcabc")
    shown = " ".join(query for _, query in queries())
    for page in (pair.target_page(), pair.draft_page()):
        for family in page.families.values():
            assert family.name in shown or family.name in NOT_SHOWN, family.name


NOT_SHOWN = {
    "outrider_draft_num_forwards": "the count of outrider_draft_forward_seconds",
    "outrider_draft_sessions_opened": "sessions that are held are shown",
    "outrider_grpc_server_handling_seconds": "requests are shown by their own times",
    "outrider_kv_cache_tokens": "its share in use is shown",
    "outrider_time_per_output_token_seconds": "a mean; the distribution is shown",
}


def test_panels_do_not_overlap_and_have_ids_of_their_own() -> None:
    cells: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        own = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not own & cells, panel["title"]
        assert max(x for x, _ in own) < 24
        cells |= own
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)


def test_variables_of_the_dashboard_are_declared() -> None:
    declared = {each["name"] for each in DASHBOARD["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(DASHBOARD["panels"])))
    assert used - {"__rate_interval"} == declared


def test_the_operator_is_given_the_same_rules() -> None:
    assert yaml.safe_load((COMPONENT / "prometheus-rule.yaml").read_text())["spec"] == ALERTS


def test_each_alert_says_what_to_do() -> None:
    page = (ROOT / "docs" / "observability.md").read_text()
    names = [rule["alert"] for rule in RULES]
    assert len(set(names)) == len(names)
    for rule in RULES:
        assert rule["labels"]["severity"] in ("info", "warning", "critical")
        assert re.fullmatch(r"\d+m", rule.get("for", "0m"))
        assert rule["annotations"]["summary"]
        assert rule["annotations"]["description"]
        assert rule["annotations"]["runbook"] == f"docs/observability.md#{rule['alert'].lower()}"
        (section,) = re.findall(rf"^#### {rule['alert']}\n\n(.+?)(?=^#)", page + "\n#", re.M | re.S)
        assert len(section.split()) > 15, f"{rule['alert']}: what should be done?"
    told = re.findall(r"^#### (Outrider\w+)$", page, re.M)
    assert sorted(told) == sorted(names)


def test_each_reason_for_want_of_something_is_watched_by_one_alert() -> None:
    wanting = {
        error.reason
        for error in OutriderError.__subclasses__()
        if error.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    }
    watched = [
        (reason, rule["labels"]["severity"])
        for rule in RULES
        for selector in selectors(promql.parse(rule["expr"]))
        if selector.name == "outrider_grpc_server_refused_total"
        for matcher in selector.matchers.matchers
        if matcher.name == "reason"
        for reason in matcher.value.split("|")
    ]
    reasons = [reason for reason, _ in watched]
    assert len(set(reasons)) == len(reasons)
    assert wanting == set(reasons) - {Reason.INTERNAL}
    # Lack of room is the operator's; who exceeds its own share wakes nobody.
    urgent = {reason for reason, severity in watched if severity == "critical"}
    assert urgent == {Reason.INTERNAL, Reason.OVERLOADED}


def test_templates_in_annotations_use_labels_that_the_expression_keeps() -> None:
    for rule in RULES:
        wanted = set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["description"]))
        kept = re.findall(r"sum by \(([^)]*)\)", rule["expr"])
        if kept and "or rate" not in rule["expr"]:
            allowed = {name.strip() for group in kept for name in group.split(",")}
            assert wanted <= allowed, rule["alert"]


def test_monitoring_beside_compose_mounts_files_that_are_there() -> None:
    compose = yaml.safe_load((ROOT / "deploy" / "compose.monitoring.yaml").read_text())
    base = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())
    for name, service in compose["services"].items():
        for volume in service.get("volumes", ()):
            source = volume.partition(":")[0]
            if source.startswith("."):
                assert (ROOT / "deploy" / source).exists(), source
        for port in service.get("ports", ()):
            assert port.startswith("127.0.0.1:"), f"{name} listens to other machines"
    scraped = yaml.safe_load((ROOT / "deploy" / "monitoring" / "prometheus.yaml").read_text())
    for job in scraped["scrape_configs"]:
        ((target,),) = [one["targets"] for one in job["static_configs"]]
        host, _, port = target.partition(":")
        assert host in base["services"]
        assert compose["services"][host]["environment"]["OUTRIDER_METRICS_PORT"] == port
