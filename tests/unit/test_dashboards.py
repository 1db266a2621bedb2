"""Dashboards, rules, alerts and runbooks: they name only metrics and pages that exist."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import promql_parser as promql
import pytest
import yaml
from click.testing import CliRunner
from grafana_foundation_sdk.models.dashboard import Dashboard
from msgspec import structs
from prometheus_client import CollectorRegistry, ProcessCollector

import dashboards
from dashboards.__main__ import main
from dashboards.board import GREY, Board, Panel, encoded
from dashboards.settings import DEFAULTS, Settings, Thresholds, load
from tests.support.grafana.schema import KEPT
from tests.support.native import ROOT
from tests.support.promql import Exported, expand, kept, selectors
from tests.support.snapshots import full
from tracer.invariants.catalogue import discover
from tracer.outputs.prometheus import SnapshotCollector

PROMETHEUS = ROOT / "dashboards/prometheus"
PAGES = {path.stem for path in (ROOT / "docs/runbooks").glob("*.md")}
VARIABLES = {
    **dict.fromkeys(("cluster", "job", "kernel", "instance", "invariant"), ".*"),
    "__rate_interval": "5m",
}
PANELS = [(board, panel) for board in dashboards.BOARDS for panel in board.panels]


def rules(name: str) -> list[dict[str, Any]]:
    groups = yaml.safe_load((PROMETHEUS / name).read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


RECORDED, ALERTS = rules("rules.yaml"), rules("alerts.yaml")
TESTS = yaml.safe_load((ROOT / "dashboards/rules_test.yaml").read_text())["tests"]
JSON = sorted((dashboards.FOLDER / "grafana").glob("*.json"))
GRAFANA = json.loads(KEPT.read_text())


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


def test_kept_dashboards_and_rules_are_what_is_generated() -> None:
    made = dashboards.files(load())
    folder = dashboards.FOLDER
    there = [path for name in ("grafana", "prometheus") for path in (folder / name).iterdir()]
    assert {str(path.relative_to(folder)) for path in there} == set(made)
    for name, text in made.items():
        assert (folder / name).read_text() == text, "make dashboards"


@pytest.mark.parametrize("path", JSON, ids=lambda path: path.stem)
def test_dashboard_has_the_schema_of_the_current_grafana(path: Path) -> None:
    """By the types of Grafana 13.2: no unknown, misplaced or missing member, in any panel."""
    found = json.loads(path.read_text())
    wrong = jsonschema.Draft7Validator(GRAFANA).iter_errors(found)
    assert [f"{list(one.path)}: {one.message[:200]}" for one in wrong] == []
    assert found["schemaVersion"] == 42
    numbers = [panel["id"] for panel in found["panels"]]
    assert len(numbers) == len(set(numbers)), "rows have ids too"


@pytest.mark.parametrize(
    "break_it",
    [
        lambda board: board.update(style="dark"),
        lambda board: board["panels"][1].update(type="graph"),
        lambda board: board["panels"][1]["options"].pop("wideLayout"),
        lambda board: board["templating"]["list"][1].update(auto=False),
        lambda board: board["panels"][1]["fieldConfig"]["defaults"].update(nullValueMode="null"),
    ],
)
def test_schema_refuses_what_the_current_grafana_does_not_know(
    break_it: Callable[[Any], None],
) -> None:
    found = json.loads(JSON[0].read_text())
    break_it(found)
    assert not jsonschema.Draft7Validator(GRAFANA).is_valid(found)


@pytest.mark.parametrize("path", JSON, ids=lambda path: path.stem)
def test_sdk_reads_and_writes_the_dashboard_unchanged(path: Path) -> None:
    """It knows every member, also those of queries, which Grafana's own types leave open."""
    text = path.read_text()
    assert encoded(Dashboard.from_json(json.loads(text))) == text


@pytest.mark.parametrize("path", JSON, ids=lambda path: path.stem)
def test_dashboard_chooses_hosts_shares_tooltips_and_marks_violations(path: Path) -> None:
    found = json.loads(path.read_text())
    names = [variable["name"] for variable in found["templating"]["list"]]
    assert names[:3] == ["datasource", "cluster", "job"]
    assert "instance" in names or path.stem == "rmapd-fleet"
    assert found["graphTooltip"] == 2
    for panel in found["panels"]:
        if panel["type"] == "timeseries":
            assert panel["options"]["tooltip"]["mode"] == "multi"
        assert all(target["datasource"] for target in panel.get("targets", ()))
    assert found["annotations"]["list"][0]["name"] == "Violations"


def test_annotations_and_variables_name_exported_metrics(exported: Exported) -> None:
    for board in dashboards.BOARDS:
        for annotation in board.annotations:
            assert not exported.wrong(expand(annotation.expr, VARIABLES)), annotation.name
        for variable in board.variables:
            series, label = variable.query[len("label_values(") : -1].rsplit(", ", 1)
            assert not exported.wrong(expand(f"count by ({label}) ({series})", VARIABLES))


@pytest.mark.parametrize(("board", "panel"), PANELS, ids=lambda one: getattr(one, "title", ""))
def test_panel_has_one_unit_on_its_axis(board: Board, panel: Panel) -> None:
    assert len({unit_of(expand(query.expr, VARIABLES)) for query in panel.queries}) == 1


def unit_of(expr: str) -> str:
    """Return the unit of a query by the name of its first series, and whether it is a rate."""
    name = selectors(promql.parse(expr))[0].name or ""
    rate = "rate(" in expr and not name.endswith("_bucket")
    if re.search(r"_ratio$|_seconds_(total|sum)$", name):
        return "share"
    found = re.search(r"_(seconds|bytes)(_bucket)?$", name)
    return found[1] if found else "per second" if rate else "number"


@pytest.mark.parametrize(("board", "panel"), PANELS, ids=lambda one: getattr(one, "title", ""))
def test_panel_has_title_unit_description_and_queries(board: Board, panel: Panel) -> None:
    assert panel.title
    assert panel.unit
    assert panel.description.endswith(".")
    assert 0 < len(panel.queries) <= 8
    assert not panel.runbook or panel.runbook in PAGES
    steps = [float(value) for value, _ in panel.thresholds]
    assert steps == sorted(steps)


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
    path = dashboards.FOLDER / "grafana" / f"{board.uid}.json"
    found = json.loads(path.read_text())["panels"]
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
        panel.nothing,
        "orange" if panel.nothing == "no data" else GREY,
    )
    assert panel.base != "green"


@pytest.mark.parametrize(("board", "panel"), PANELS, ids=lambda one: getattr(one, "title", ""))
def test_no_panel_about_coverage_is_red(board: Board, panel: Panel) -> None:
    """What a kernel does not have, or lets nobody hook, is no fault of anybody."""
    if any("coverage" in query.expr or "hooks" in query.expr for query in panel.queries):
        assert "red" not in {panel.base, *(colour for _, colour in panel.thresholds)}


def test_zero_is_green_only_for_standing() -> None:
    """There are zero violations also if nothing is checked."""
    green = {
        panel.title
        for _, panel in SHOWN
        if any(float(value) <= 0 and colour == "green" for value, colour in panel.thresholds)
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
    assert rule["annotations"]["runbook_url"] == f"{load().runbook_url}/{name}.md"
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


def mine(folder: Path, text: str) -> Path:
    """Return a file of settings with this text."""
    path = folder / "mine.yaml"
    path.write_text(text)
    return path


OWN = """
job: kernel/rmapd-.*
selector: region="north"
cluster_label: site
runbook_url: https://wiki.example.org/rmapd/
thresholds:
  lock_wait_seconds: 0.25
  unverifiable_ratio: 0.05
"""


def test_settings_of_a_fleet_are_in_its_rules_and_dashboards(tmp_path: Path) -> None:
    """A threshold is changed in one place, and seen in both."""
    folder = tmp_path / "out"
    done = CliRunner().invoke(
        main, ["--config", str(mine(tmp_path, OWN)), "--out", str(folder)], catch_exceptions=False
    )
    assert done.exit_code == 0, done.output
    written = {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*.*")}
    assert set(written) == set(dashboards.files(load()))
    alerts, rules = written["prometheus/alerts.yaml"], written["prometheus/rules.yaml"]
    host, fleet = written["grafana/rmapd-host.json"], written["grafana/rmapd-fleet.json"]
    assert "> 0.25\n" in alerts
    assert "> 0.05\n" in alerts
    for text in (host, fleet):
        steps = {
            step["value"]
            for panel in json.loads(text)["panels"]
            if panel["type"] != "row"
            for step in panel["fieldConfig"]["defaults"]["thresholds"]["steps"]
        }
        assert {0.25, 0.05} <= steps
        assert 0.01 not in steps
    for text in written.values():
        assert "rmapd.example" not in text
        assert 'job="rmapd"' not in text
        assert "<<" not in text
        assert "cluster," not in text
    assert 'up{job=~"kernel/rmapd-.*", region="north"} == 0' in alerts
    assert "https://wiki.example.org/rmapd/RmapdDown.md" in alerts
    assert "by (site, job, instance)" in rules
    assert 'site=~\\"$cluster\\"' in host


def test_every_threshold_is_used() -> None:
    """A key that nothing reads would promise what does not happen."""
    default = load()
    for name in default.thresholds.__struct_fields__:
        value = getattr(default.thresholds, name)
        more = structs.replace(default.thresholds, **{name: value * 0.5})
        assert dashboards.files(structs.replace(default, thresholds=more)) != dashboards.files(
            default
        ), name


def test_file_of_settings_has_every_key_and_none_is_without_meaning() -> None:
    text = DEFAULTS.read_text()
    for struct in (Settings, Thresholds):
        for name in struct.__struct_fields__:
            assert re.search(rf"^ *{name}:", text, re.MULTILINE)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("thresholds:\n  lock_wait: 1\n", "unknown field `lock_wait`"),
        ("runbooks: x\n", "unknown field `runbooks`"),
        ("thresholds:\n  unverifiable_ratio: 7\n", "`float` <= 1.0 - at `$.thresholds.unverif"),
        ("thresholds:\n  lock_wait_seconds: fast\n", "`$.thresholds.lock_wait_seconds`"),
        ("thresholds: 3\n", "Expected `object`, got `int` - at `$.thresholds`"),
        ("runbook_url: wiki\n", "`$.runbook_url`"),
        ("cluster_label: a-b\n", "`$.cluster_label`"),
        ('job: ""\n', "`$.job`"),
        ("selector: region=north\n", "region=north' is no list of PromQL matchers"),
        ('selector: x="1"} or up{y="2"\n', "is no list of PromQL matchers"),
        ("- a\n", "the file is a list, not keys with values"),
        ("job: [\n", "cannot read the settings"),
    ],
)
def test_wrong_settings_are_a_clear_error(text: str, expected: str, tmp_path: Path) -> None:
    path = mine(tmp_path, text)
    done = CliRunner().invoke(main, ["--config", str(path), "--out", str(tmp_path / "out")])
    assert done.exit_code == 1
    assert expected in done.output
    assert str(path) in done.output
    assert "try: " in done.output
    assert not (tmp_path / "out").exists()


def test_missing_settings_are_a_clear_error(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["--config", str(tmp_path / "none.yaml")])
    assert done.exit_code == 1
    assert "none.yaml" in done.output
    assert "No such file" in done.output
