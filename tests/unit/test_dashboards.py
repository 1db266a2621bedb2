"""Dashboards, rules, alerts and runbooks: they name only metrics and pages that exist."""

from __future__ import annotations

import json
from typing import Any

import promql_parser as promql
import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard
from prometheus_client import CollectorRegistry, ProcessCollector

import dashboards
from dashboards.board import RUNBOOKS, Board, Panel
from tests.support.native import ROOT
from tests.support.promql import Exported, expand, kept
from tests.support.snapshots import full
from tracer.invariants.catalogue import discover
from tracer.outputs.prometheus import SnapshotCollector

PROMETHEUS = ROOT / "dashboards/prometheus"
PAGES = {path.stem for path in (ROOT / "docs/runbooks").glob("*.md")}
VARIABLES = {"host": ".*", "kernel": ".*", "invariant": ".*", "__rate_interval": "5m"}
PANELS = [(board, panel) for board in dashboards.BOARDS for panel in board.panels]


def rules(name: str) -> list[dict[str, Any]]:
    groups = yaml.safe_load((PROMETHEUS / name).read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


RECORDED, ALERTS = rules("rules.yaml"), rules("alerts.yaml")
TESTS = yaml.safe_load((PROMETHEUS / "rules_test.yaml").read_text())["tests"]


@pytest.fixture(scope="module")
def exported() -> Exported:
    """Return all series that rmapd can export, and those that the rules record."""
    registry = CollectorRegistry()
    registry.register(SnapshotCollector(full))
    ProcessCollector(registry=registry)
    out = Exported.of(registry.collect())
    for rule in RECORDED:
        out.labels[rule["record"]] = kept(promql.parse(rule["expr"]))
    return out


def test_dashboards_match_generated_json() -> None:
    made = dashboards.files()
    assert set(dashboards.FOLDER.iterdir()) == set(made)
    for path, text in made.items():
        assert path.read_text() == text, "make dashboards"


@pytest.mark.parametrize(
    "path", sorted(dashboards.FOLDER.glob("*.json")), ids=lambda path: path.stem
)
def test_dashboard_json_has_grafana_schema(path: Any) -> None:
    """The SDK reads the JSON and writes it again without a change, so it knows every key."""
    found = json.loads(path.read_text())
    again = json.loads(JSONEncoder().encode(Dashboard.from_json(found)))
    assert again == found
    numbers = [panel["id"] for panel in found["panels"] if panel["type"] != "row"]
    assert len(numbers) == len(set(numbers))


@pytest.mark.parametrize(("board", "panel"), PANELS, ids=lambda one: getattr(one, "title", ""))
def test_panel_has_title_unit_description_and_queries(board: Board, panel: Panel) -> None:
    assert panel.title
    assert panel.unit
    assert panel.description.endswith(".")
    assert 0 < len(panel.queries) <= 8
    assert not panel.runbook or panel.runbook in PAGES
    assert list(panel.thresholds) == sorted(panel.thresholds)


@pytest.mark.parametrize(("board", "panel"), PANELS, ids=lambda one: getattr(one, "title", ""))
def test_panel_queries_name_exported_metrics(
    board: Board, panel: Panel, exported: Exported
) -> None:
    for query in panel.queries:
        assert not exported.wrong(expand(query.expr, VARIABLES)), query.expr


SHOWN = [(board, panel) for board, panel in PANELS if panel.kind in ("stat", "bars")]


@pytest.mark.parametrize(("board", "panel"), SHOWN, ids=lambda one: getattr(one, "title", ""))
def test_panel_without_data_is_not_green(board: Board, panel: Panel) -> None:
    """Grafana shows null in the colour of the lowest step, unless a mapping overrides it."""
    found = json.loads((dashboards.FOLDER / f"{board.uid}.json").read_text())["panels"]
    (own,) = [
        one
        for one in found
        if (one["title"], one["type"])
        == (panel.title, {"stat": "stat", "bars": "bargauge"}[panel.kind])
    ]
    defaults = own["fieldConfig"]["defaults"]
    (lowest,) = [step for step in defaults["thresholds"]["steps"] if step["value"] is None]
    assert lowest["color"] != "green"
    (nothing,) = [one["options"] for one in defaults["mappings"] if one["type"] == "special"]
    assert (nothing["match"], nothing["result"]["text"], nothing["result"]["color"]) == (
        "null+nan",
        "no data",
        "orange",
    )
    assert panel.base != "green"


def test_zero_is_green_only_for_standing() -> None:
    """There are zero violations also if nothing is checked."""
    green = {
        panel.title
        for _, panel in SHOWN
        if any(value <= 0 and colour == "green" for value, colour in panel.thresholds)
    }
    assert green == {"Standing"}


def test_fleet_dashboard_needs_only_recorded_series(exported: Exported) -> None:
    recorded = {rule["record"] for rule in RECORDED}
    fleet = next(board for board in dashboards.BOARDS if board.uid == "rmapd-fleet")
    alone = Exported({name: labels for name, labels in exported.labels.items() if name in recorded})
    for panel in fleet.panels:
        for query in panel.queries:
            assert not alone.wrong(expand(query.expr, VARIABLES)), query.expr


def test_query_for_unknown_metric_is_detected(exported: Exported) -> None:
    assert exported.wrong("rmapd_violation_total") == ["no metric rmapd_violation_total"]
    assert exported.wrong('rmapd_violations_total{verdict="holds"}') == [
        "rmapd_violations_total has no label verdict"
    ]
    assert exported.wrong('rate(rmapd_checks_total{verdict="held"}[5m])') == [
        "rmapd_checks_total has no verdict=held"
    ]
    assert exported.wrong("sum by (hook) (rmapd_violations_total)") == ["nothing has a label hook"]


@pytest.mark.parametrize(
    "rule", [*RECORDED, *ALERTS], ids=lambda rule: rule.get("record") or rule["alert"]
)
def test_rules_name_exported_metrics(rule: dict[str, Any], exported: Exported) -> None:
    assert not exported.wrong(rule["expr"])


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_alert_has_severity_and_annotations(rule: dict[str, Any]) -> None:
    name = rule["alert"]
    assert rule["labels"]["severity"] in ("critical", "warning", "info")
    assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}
    assert rule["annotations"]["runbook_url"] == f"{RUNBOOKS}/{name}.md"
    assert name in PAGES


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_alert_has_firing_and_silent_test_case(rule: dict[str, Any]) -> None:
    cases = [
        case
        for test in TESTS
        for case in test.get("alert_rule_test", ())
        if case["alertname"] == rule["alert"]
    ]
    assert any(case["exp_alerts"] for case in cases)
    assert any(not case["exp_alerts"] for case in cases)


def test_every_alert_and_invariant_has_a_runbook_and_no_runbook_is_unused() -> None:
    assert {rule["alert"] for rule in ALERTS} | set(discover()) | {"README"} == PAGES
    heads = (
        "What it means.",
        "How certain it is.",
        "Save before rebooting.",
        "What the trail shows.",
        "Whom to contact.",
    )
    index = (ROOT / "docs/runbooks/README.md").read_text()
    for page in PAGES - {"README"}:
        text = (ROOT / f"docs/runbooks/{page}.md").read_text()
        assert text.startswith(f"# {page}: ")
        assert [head for head in heads if f"**{head}** " not in text] == []
        assert f"[{page}]({page}.md)" in index
