"""Outputs of the daemon: metrics, HTTP endpoints, reports, KTAP."""

from __future__ import annotations

import io
import json
import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console

from tests.support.clock import SAFETY_SECONDS
from tests.support.snapshots import FINDING, full, snapshot
from tracer.daemon.terminal import table
from tracer.errors import RmapdError
from tracer.invariants.base import Coverage
from tracer.invariants.catalogue import discover
from tracer.invariants.verdict import Tally, Verdict, Violation
from tracer.outputs.prometheus import SnapshotCollector
from tracer.report import terminal
from tracer.report.ktap import as_ktap
from tracer.results import json_form
from tracer.results.history import HistoryPoint
from tracer.results.hook_groups import GroupKind
from tracer.results.snapshot import ConfigRead, Snapshot, StoreState
from tracer.tables.histogram import SLOTS, Histogram
from tracer.web import Application, Server

PROCESS_AND_SCRAPE = 6 + 5
"""process_* of the client library, and up and scrape_*, which Prometheus adds to each target."""
DESIGN_NAMES = """rmapd_checks_total rmapd_violations_total rmapd_invariant_coverage
rmapd_probe_attached rmapd_probe_run_seconds_total rmapd_probe_runs_total
rmapd_probe_measured_seconds_total rmapd_windows_total
rmapd_protocols rmapd_migration_entries_outstanding rmapd_migration_oldest_entry_seconds
rmapd_migration_entry_seconds_bucket rmapd_window_seconds_bucket rmapd_lock_wait_seconds_bucket
rmapd_lock_hold_seconds_bucket
rmapd_rmap_walk_vmas_bucket rmapd_events_lost_total rmapd_fidelity rmapd_build_info""".split()


def exposition(s: Snapshot) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    registry = CollectorRegistry()
    registry.register(SnapshotCollector(lambda: s))
    families = text_string_to_metric_families(generate_latest(registry).decode())
    return {
        (one.name, tuple(sorted(one.labels.items()))): one.value
        for family in families
        for one in family.samples
    }


def test_every_metric_of_the_design_exists_from_the_first_scrape() -> None:
    empty = snapshot(checks={}, violations={}, statistics={}, histograms={}, counters={}, oracle={})
    names = {name for name, _ in exposition(empty)}
    assert not [name for name in DESIGN_NAMES if name not in names]


def test_metrics_have_values_and_labels_of_the_snapshot() -> None:
    samples = exposition(snapshot())
    assert samples["rmapd_checks_total", (("invariant", "M1"), ("verdict", "holds"))] == 41
    assert samples["rmapd_violations_total", (("invariant", "M1"),)] == 1
    assert samples["rmapd_probe_attached", (("hook", "gone"),)] == 0
    assert samples["rmapd_probe_run_seconds_total", (("hook", "set_migration_pte"),)] == 0.5
    assert samples["rmapd_events_lost_total", (("kind", "ledger"),)] == 3
    assert samples["rmapd_events_lost_total", (("kind", "missed_runs"),)] == 2


def test_histogram_buckets_are_cumulative_and_complete() -> None:
    samples = exposition(snapshot())
    rows = {
        labels[0][1]: value
        for (name, labels), value in samples.items()
        if name == "rmapd_migration_entry_seconds_bucket" and labels[0][0] == "le"
    }
    values = [rows[le] for le in sorted(rows, key=float)]
    assert values == sorted(values)
    assert (rows["3.2768e-05"], rows["+Inf"]) == (3, 4)
    assert samples["rmapd_migration_entry_seconds_sum", ()] == 5.0


def test_label_values_come_from_fixed_sets() -> None:
    allowed = {
        "invariant",
        "verdict",
        "hook",
        "function",
        "class",
        "mode",
        "kind",
        "event",
        "level",
        "probe_object",
        "version",
        "kernel",
        "le",
        "direction",
        "reason",
        "ended",
        "state",
    }
    assert {key for _, labels in exposition(snapshot()) for key, _ in labels} <= allowed


def test_host_has_under_1100_series() -> None:
    """Count with every hook attached and every window and class seen: more than on any kernel.

    An invariant has 7 series, a window 6 and its hook 3 (docs/FLEET.md has the bound).
    """
    every = full()
    assert len(every.hooks) > 70
    assert set(every.window_times) >= {hook.hook.window for hook in every.hooks} - {""}
    series = [sample for sample in exposition(every) if not sample[0].endswith("_created")]
    assert len(series) + PROCESS_AND_SCRAPE < 1100


def test_function_without_hook_has_no_duration_series() -> None:
    samples = exposition(snapshot())
    assert ("rmapd_probe_runs_total", (("hook", "gone"),)) not in samples
    assert samples["rmapd_probe_missed_runs_total", (("probe_object", "migration"),)] == 2
    assert ("rmapd_windows_total", (("function", "copy_vma"),)) not in exposition(
        snapshot(window_times={"vma_expand": Histogram(), "copy_vma": Histogram()})
    )


def test_lock_classes_of_one_label_are_summed() -> None:
    once, twice = Histogram((1,) * SLOTS, 7), Histogram((2,) * SLOTS, 5)
    samples = exposition(snapshot(lock_waits={"anon": once, "anon2": twice}))
    assert (
        samples["rmapd_lock_wait_seconds_count", (("class", "anon"), ("mode", "any"))]
        == 3 * SLOTS - 3
    )
    assert samples[
        "rmapd_lock_wait_seconds_sum", (("class", "anon"), ("mode", "any"))
    ] == pytest.approx(12e-9)


def test_acquisitions_that_did_not_wait_are_apart_from_waits() -> None:
    waits = Histogram((90, *(0,) * 27, 10, *(0,) * (SLOTS - 29)), 10 << 27)
    labels = (("class", "mmap_lock"), ("mode", "read"))
    samples = exposition(snapshot(histograms={"HIST_MMAP_WAIT_READ": waits}))
    assert samples["rmapd_lock_without_wait_total", labels] == 90
    assert samples["rmapd_lock_wait_seconds_count", labels] == 10
    buckets = {
        float(dict(found)["le"]): value
        for (name, found), value in samples.items()
        if name == "rmapd_lock_wait_seconds_bucket" and set(labels) <= set(found)
    }
    assert (buckets[2**27 / 1e9], buckets[2**28 / 1e9]) == (0, 10)


@pytest.mark.parametrize(
    "name",
    ["rmapd_lock_wait_seconds", "rmapd_lock_hold_seconds", "rmapd_migration_entry_seconds"],
)
def test_buckets_double_from_a_millisecond_to_two_seconds(name: str) -> None:
    """A quantile is estimated within a bucket, so it is wrong by a factor of two at most."""
    edges = sorted(
        {
            float(dict(labels)["le"])
            for found, labels in exposition(snapshot())
            if found == f"{name}_bucket"
        }
    )
    at = [edge for edge in edges if 1e-3 <= edge <= 2.2]
    assert at == [2**power / 1e9 for power in range(20, 32)]


def test_first_violation_of_this_boot_is_that_of_the_store_or_of_this_run() -> None:
    def since(**changes: Any) -> dict[str, float]:
        return {
            labels[0][1]: value
            for (name, labels), value in exposition(snapshot(**changes)).items()
            if name == "rmapd_first_violation_time_seconds" and value
        }

    assert since() == {"M1": 1_700_000_000.0}
    earlier = StoreState(violated_since={"M1": 1_600_000_000.0, "L3": 1_650_000_000.0})
    assert since(store=earlier) == {"M1": 1_600_000_000.0, "L3": 1_650_000_000.0}
    later = StoreState(violated_since={"M1": 1_800_000_000.0})
    assert since(store=later) == {"M1": 1_700_000_000.0}
    counted = {("V1", Verdict.VIOLATED): 1}
    assert since(violations={}, checks=counted, taken_seconds=1000.2, running_seconds=0.1) == {
        "V1": 1000.0
    }, "without evidence: when this run began"
    suspect = replace(FINDING, verdict=Verdict.SUSPECT)
    seen = {suspect.id: Violation(suspect, 5.0, 5.0)}
    assert since(violations=seen, checks={("M1", Verdict.SUSPECT): 1}) == {}


def test_limits_and_the_last_reload_are_exported() -> None:
    samples = exposition(
        snapshot(budget=0.02, age_limit_seconds=7.0, config_read=ConfigRead(False, 5.0))
    )
    assert samples["rmapd_budget_ratio", ()] == 0.02
    assert samples["rmapd_max_entry_age_seconds", ()] == 7.0
    assert samples["rmapd_config_last_reload_successful", ()] == 0
    assert samples["rmapd_config_last_reload_success_timestamp_seconds", ()] == 5.0


def test_hooks_are_counted_by_what_became_of_them() -> None:
    counts = {
        labels[0][1]: value
        for (name, labels), value in exposition(snapshot()).items()
        if name == "rmapd_hooks"
    }
    assert set(counts) == {kind.value for kind in GroupKind}
    assert {state: n for state, n in counts.items() if n} == {"attached": 1, "absent": 1}


class Box:
    points: tuple[HistoryPoint, ...] = ()

    def __init__(self) -> None:
        self.snapshot: Snapshot | None = snapshot(taken_seconds=time.time())

    def __call__(self) -> Snapshot | None:
        return self.snapshot


@pytest.fixture
def served() -> Iterator[tuple[Box, str]]:
    box = Box()
    with Server(("127.0.0.1", 0), Application(box)) as server:
        yield box, f"http://127.0.0.1:{server.port}"


def get(url: str, method: str = "GET") -> tuple[int, str, dict[str, str]]:
    try:
        with urllib.request.urlopen(
            urllib.request.Request(url, method=method), timeout=SAFETY_SECONDS
        ) as answer:
            return answer.status, answer.read().decode(), dict(answer.headers)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode(), dict(error.headers)


def test_endpoints_answer_by_state_of_gate(served: tuple[Box, str]) -> None:
    box, url = served
    assert get(f"{url}/-/healthy")[0] == 200
    assert get(f"{url}/-/ready")[0] == 200
    assert "rmapd_checks_total" in get(f"{url}/metrics")[1]
    status, page, headers = get(f"{url}/")
    assert status == 200
    assert "an entry &lt;b&gt; was left behind" in page
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert get(f"{url}/nothing")[0] == 404
    assert get(f"{url}/metrics", "POST")[0] == 405
    box.snapshot = snapshot(gate_open=False)
    assert get(f"{url}/-/ready")[0] == 503
    assert get(f"{url}/metrics")[0] == 200
    box.snapshot = None
    assert [get(url + path)[0] for path in ("/-/healthy", "/-/ready", "/metrics", "/")] == [
        200,
        503,
        200,
        503,
    ]
    before = get(f"{url}/metrics")[1]
    assert "rmapd_gate_open 0.0" in before
    assert "process_cpu_seconds_total" in before
    assert "rmapd_checks_total" not in before


def test_busy_port_is_a_clear_error(served: tuple[Box, str]) -> None:
    port = int(served[1].rsplit(":", 1)[1])
    with pytest.raises(RmapdError, match=f"cannot listen on 127.0.0.1:{port}"):
        Server(("127.0.0.1", port), Application(served[0]))


def test_report_has_keys_of_the_contract() -> None:
    found = json.loads(json.dumps(json_form.as_json(snapshot(), ["true"], 0)))
    keys = """rmapd kernel fidelity duration_seconds command hooks invariants windows protocols
    violations lost overhead""".split()
    assert set(keys) <= set(found)
    assert found["command"] == {"argv": ["true"], "exit_code": 0}
    assert found["hooks"]["gone"] == {
        "state": "missing",
        "how": "",
        "symbol": "",
        "reason": "no raw tracepoint gone in this kernel",
    }
    assert found["invariants"]["M1"]["checks"] == {
        "holds": 41,
        "violated": 1,
        "suspect": 0,
        "unverifiable": 0,
    }
    (violation,) = found["violations"]
    assert violation["id"] == FINDING.id
    assert violation["first_seen"] == "2023-11-14T22:13:20.000000Z"
    assert {"evidence", "protocols", "ledger"} <= set(found["lost"])
    assert set(found["overhead"]) == {
        "user_seconds",
        "rss_bytes",
        "longest_tick_gap_seconds",
        "measured_seconds",
        "hooks",
    }


def test_text_lists_unchecked_invariants() -> None:
    text = terminal.as_text(snapshot(), ["x"], "")
    assert "VIOLATED M1" in text
    assert "not checked: M1, M2" in text
    assert "1 of 2 hooks are attached" in text
    assert "1 raw tracepoint does not exist in this kernel" in text


def test_text_has_coverage_and_checks_in_columns() -> None:
    lines = terminal.as_text(snapshot(), ["x"], "").splitlines()
    at = next(n for n, line in enumerate(lines) if "coverage" in line)
    assert lines[at].split() == ["coverage", "holds", "violated", "suspect", "unverifiable"]
    assert lines[at + 1].split() == ["M1", "none", "41", "1", "0", "0"]


def test_ktap_has_point_for_each_invariant() -> None:
    lines = as_ktap(snapshot()).splitlines()
    assert lines[0] == "KTAP version 1"
    points = [line for line in lines[2:] if not line.startswith("#")]
    assert lines[1] == f"1..{len(points)}"
    assert points[0] == "not ok 1 M1: no migration entry is left behind"
    assert "# SKIP" in points[1]


def test_status_table_shows_rates() -> None:
    before, now = snapshot(checks={}), snapshot(running_seconds=14.5)
    shown = table(now, before, "here")
    assert shown.row_count == 1
    assert "not checked here: M1 M2" in str(shown.title)
    assert "lost: evidence 1, ledger 3, missed runs 2 ·" in str(shown.title)


_HEADER = "    coverage        holds  violated  suspect  unverifiable  checks/s"


def test_status_table_fits_a_terminal_of_80_columns_and_24_lines() -> None:
    """All invariants are covered there; the standing and the losses come before the rows."""
    every = dict.fromkeys(discover(), (Coverage.FULL, ""))
    last = [*every][-1]
    checks = {("M1", Verdict.HOLDS): 10**8, (last, Verdict.SUSPECT): 1}
    s = snapshot(coverage=every, counters={}, statistics={}, checks=checks)
    console = Console(width=80, file=io.StringIO())
    with console.capture() as drawn:
        console.print(table(s, None, "http://127.0.0.1:9743", (), 80, 24))
    lines = [line.rstrip() for line in drawn.get().splitlines()]
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80
    rows = [line.split()[0] for line in lines[lines.index(_HEADER) + 1 : -1]]
    assert rows[-1] == last, "what is wrong has its row on every terminal"
    assert re.fullmatch(r"nothing is wrong with ((?:[A-Z]\d+ )+)either", lines[-1]), lines[-1]
    named = lines[-1].split()[4:-1]
    assert sorted(rows + named) == sorted(every), "each is named"
    assert not {*rows} & {*named}
    with console.capture() as drawn:
        console.print(table(s, None, "http://127.0.0.1:9743", (), 80, 100))
    assert [line[:3].strip() for line in drawn.get().splitlines()[-len(every) :]] == list(every)
    titles = table(s, None, "http://127.0.0.1:9743", (), 160)
    assert "invariant" in [column.header for column in titles.columns]


def test_repeated_defect_is_one_violation_with_count() -> None:
    tally = Tally(most_signatures=1)
    assert tally.record(FINDING, 1.0)
    assert not tally.record(FINDING, 2.0, 3)
    other = type(FINDING)("M4", Verdict.SUSPECT, "f", "s", "t")
    assert not tally.record(other, 3.0)
    assert tally.rest.total() == 1
    (violation,) = tally.violations.values()
    assert (violation.count, violation.first_seen, violation.last_seen) == (4, 1.0, 2.0)
    assert tally.checks["M4", Verdict.SUSPECT] == 1


def test_unwritable_store_is_visible_in_metrics_and_report() -> None:
    state = StoreState("/x", "database or disk is full", 7, 1, 3, 0.5, 2)
    samples = exposition(
        snapshot(store=state, rest={("L1", Verdict.VIOLATED): 40, ("L2", Verdict.SUSPECT): 2})
    )
    assert samples["rmapd_store_writable", ()] == 0
    assert samples["rmapd_store_unwritten_findings", ()] == 7
    assert samples["rmapd_store_failures_total", ()] == 3
    assert samples["rmapd_store_deleted_signatures_total", ()] == 2
    assert samples["rmapd_findings_without_evidence_total", ()] == 42
    assert ("rmapd_store_writable", ()) not in exposition(snapshot())
    found = json_form.as_json(snapshot(rest={("L1", Verdict.VIOLATED): 40}), [], 0)
    assert found["beyond"] == {"L1 violated": 40}


def test_unsampled_windows_are_in_every_output() -> None:
    taken = snapshot(
        fidelity="sampled", windows_unsampled={"vma_expand": 1000, "copy_vma": 234, "vma_shrink": 0}
    )
    assert json_form.as_json(taken, [], 0)["windows_unsampled"] == {
        "vma_expand": 1000,
        "copy_vma": 234,
    }
    assert "1,234 windows were not recorded, because of sampling" in terminal.as_text(
        taken, ["x"], ""
    )
    assert (
        exposition(taken)["rmapd_windows_unsampled_total", ()],
        exposition(snapshot())["rmapd_windows_unsampled_total", ()],
    ) == (
        1234,
        0,
    )
    assert "windows not sampled 1,234" in str(table(taken, None, "").title)
    assert "windows not sampled" not in str(table(snapshot(), None, "").title)
