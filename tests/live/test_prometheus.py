"""A real Prometheus scrapes a real rmapd.

Rules load, every dashboard query has a result, alerts fire.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.parser import text_string_to_metric_families

import dashboards
from tests.live.conftest import ROOT, WORKLOAD, daemon, daemons_user
from tests.support.daemons import RMAPD, checker_of, fetch, until
from tests.support.panels import draw_all
from tests.support.prometheus import (
    RULES,
    SCRAPE_SECONDS,
    Prometheus,
    free_port,
    prometheus,
    running,
)
from tests.support.promql import expand
from tests.support.snapshots import FINDING, full
from tracer.invariants.verdict import Violation
from tracer.outputs.prometheus import SnapshotCollector
from tracer.outputs.store.writer import Store
from tracer.web import Request, Response, Server

VIOLATED = 'rmapd_first_violation_time_seconds{job="rmapd"}'
HOOKED_ONLY = ("rmapd_windows_total", "rmapd_window_seconds", "rmapd_protocols")
"""Metrics that have no series on a kernel without hooks on functions."""
ALL = {
    **dict.fromkeys(("cluster", "job", "kernel", "instance", "invariant"), ".*"),
    "__rate_interval": "30s",
}
"""The dashboards' variables, when nothing is chosen."""


@contextlib.contextmanager
def replayed(page: Callable[[], bytes]) -> Iterator[str]:
    """Serve this text as /metrics by the daemon's own server; yield its address."""

    def app(_: Request) -> Response:
        return Response(200, page(), "text/plain; version=0.0.4; charset=utf-8")

    with Server(("127.0.0.1", 0), app) as server:
        yield f"127.0.0.1:{server.port}"


def test_promtool_accepts_rules_and_alerts() -> None:
    for args in (
        ["check", "rules", *map(str, sorted(RULES.iterdir()))],
        ["test", "rules", "rules_test.yaml"],
    ):
        done = subprocess.run(
            ["promtool", *args], cwd=dashboards.FOLDER, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_rejects_a_wrong_rule(tmp_path: Path) -> None:
    (tmp_path / "prometheus").mkdir()
    for name in ("prometheus/rules.yaml", "prometheus/alerts.yaml", "rules_test.yaml"):
        text = (dashboards.FOLDER / name).read_text()
        (tmp_path / name).write_text(
            text.replace(f"{VIOLATED}[15m]) > 0", f"{VIOLATED}[15m]) > 9e9")
        )
    done = subprocess.run(
        ["promtool", "test", "rules", "rules_test.yaml"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "RmapdInvariantViolated" in done.stdout + done.stderr


def test_every_dashboard_query_has_an_answer(tmp_path: Path) -> None:
    """The series come from a real run.

    Those that need hooks on functions come from the exporter over a made-up snapshot, if this
    kernel has no such hooks.
    """
    registry = CollectorRegistry()
    registry.register(SnapshotCollector(full))
    ProcessCollector(registry=registry)
    with daemon() as (_, url), replayed(lambda: generate_latest(registry)) as replay:
        real = url.removeprefix("http://")
        live = fetch(f"{url}/metrics")[1]
        checked = subprocess.run(
            ["promtool", "check", "metrics"],
            input=live,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")
        hooked = any(line.startswith(HOOKED_ONLY) for line in live.splitlines())
        with prometheus(tmp_path, real, replay) as api:
            subprocess.run([*WORKLOAD, "20000"], check=True, stdout=subprocess.DEVNULL)
            until(
                lambda: api.query("instance_class_mode:rmapd_lock_wait_seconds:p99_rate5m"),
                30,
                "the rules have run",
            )
            time.sleep(5 * SCRAPE_SECONDS)
            answered = 0
            for board in dashboards.BOARDS:
                for panel in board.panels:
                    for query in panel.queries:
                        needs_hooks = any(name in query.expr for name in HOOKED_ONLY) and not hooked
                        host = replay if needs_hooks else real
                        expr = expand(query.expr, {**ALL, "instance": host})
                        # On a busy machine a scrape may come too late, and all series end.
                        until(partial(api.query, expr), 10, f"{panel.title} has data: {expr}")
                        answered += 1
                for variable in board.variables:
                    expr, label = (
                        variable.query.removeprefix("label_values(")
                        .removesuffix(")")
                        .rsplit(", ", 1)
                    )
                    assert api.get(
                        f"/api/v1/label/{label}/values",
                        **{"match[]": expand(expr, ALL)},
                    ), variable.query
                for annotation in board.annotations:
                    api.query(expand(annotation.expr, ALL))
            assert answered >= 50
            if folder := os.environ.get("RMAPD_PANELS"):
                draw_all(api, Path(folder), 60, **{**ALL, "instance": real})
            (series,) = api.query(f'scrape_samples_scraped{{instance="{real}"}}')
            assert int(series["value"][1]) < 800


def documented(heading: str) -> Any:
    """Return the first block of YAML below a heading of docs/FLEET.md."""
    text = (ROOT / "docs/FLEET.md").read_text().partition(f"## {heading}\n")[2]
    block = itertools.dropwhile(lambda line: not line.startswith("    "), text.splitlines())
    return yaml.safe_load(
        "\n".join(itertools.takewhile(lambda line: line.startswith("    ") or not line, block))
    )


def documented_number(row: str) -> int:
    """Return the number of a row of the table in docs/FLEET.md."""
    (number,) = re.findall(rf"^\| {row} \| (\d+) \|$", (ROOT / "docs/FLEET.md").read_text(), re.M)
    return int(number)


def until_answer(api: Prometheus, expr: str, number: int) -> None:
    """Wait until the only series of a query has this value.

    The groups of rules run one after another and the series arrive with several scrapes, so the
    first ones that arrive are not all.
    """
    expected = [str(number)]

    def answer() -> list[str]:
        return [series["value"][1] for series in api.query(expr)]

    with contextlib.suppress(pytest.fail.Exception):
        until(lambda: answer() == expected, 60, expr)
    assert answer() == expected, expr


def test_fleet_dashboard_has_data_by_federation_and_remote_write(tmp_path: Path) -> None:
    """One Prometheus scrapes, a global one federates it, and another receives its remote writes.

    Every query of the Fleet dashboard has a result in both.
    """
    registry = CollectorRegistry()
    registry.register(SnapshotCollector(full))
    ProcessCollector(registry=registry)
    federate, write = documented("Federation"), documented("Remote write")
    folders = [tmp_path / name for name in ("region", "global", "store")]
    for folder in folders:
        folder.mkdir()
    with contextlib.ExitStack() as stack:
        _, url = stack.enter_context(daemon())
        replay = stack.enter_context(replayed(lambda: generate_latest(registry)))
        store = stack.enter_context(running(folders[2], {}, "--web.enable-remote-write-receiver"))
        write["remote_write"][0]["url"] = f"{store.url}/api/v1/write"
        own = {"external_labels": {"region": "north"}}
        region = stack.enter_context(
            prometheus(folders[0], url.removeprefix("http://"), replay, **write, **{"global": own})
        )
        federate["scrape_configs"][0]["static_configs"] = [
            {"targets": [region.url.removeprefix("http://")]}
        ]
        fleet = stack.enter_context(running(folders[1], federate))
        board = next(board for board in dashboards.BOARDS if board.uid == "rmapd-fleet")
        for api in (fleet, store):
            for panel in board.panels:
                for query in panel.queries:
                    expr = expand(query.expr, ALL)
                    until(partial(api.query, expr), 60, f"{panel.title}: {expr}")
            names = api.get("/api/v1/label/__name__/values")
            assert [name for name in names if name.startswith("rmapd_")] == [], (
                "raw series stay in the region"
            )
            until_answer(api, 'sum(kernel:rmapd_hosts:count{region="north", job="rmapd"})', 2)
        here = url.removeprefix("http://")
        until_answer(
            fleet,
            f'count({{__name__=~".+:rmapd_.+", instance="{here}"}})',
            documented_number("recorded, per host"),
        )
        until_answer(
            fleet,
            f'count({{__name__=~".+:rmapd_.+", kernel="{os.uname().release}", instance=""}})',
            documented_number("recorded, per kernel release and job"),
        )


def test_alerts_fire_for_missing_and_less_covering_daemons(tmp_path: Path) -> None:
    """A daemon is not started yet, covers less after a restart, or was killed."""
    at = f"127.0.0.1:{free_port()}"
    with prometheus(tmp_path, at) as api:
        until(lambda: ("RmapdDown", at) in api.firing(), 20, "RmapdDown before it is started")
        with run_at(at) as process:
            until(lambda: api.query("rmapd_gate_open == 1"), 60, "the gate is open")
            # Compiling exceeds the budget while it is in the rate's window. The alert waits a
            # quarter of an hour for it to pass; here it waits a second.
            quiet = {"RmapdOverheadOverBudget"}
            until(
                lambda: {name for name, _ in api.firing()} <= quiet,
                20,
                "RmapdDown and RmapdNotReady end",
            )
            process.terminate()
            process.wait(30)
        with run_at(at, "--fidelity", "migration"):
            lost = until(
                lambda: api.firing().get(("RmapdCoverageLost", at)),
                60,
                "RmapdCoverageLost after a restart with less",
            )
            assert lost["severity"] == "warning"
            assert lost["runbook_url"].endswith("/RmapdCoverageLost.md")
        until(lambda: ("RmapdDown", at) in api.firing(), 20, "RmapdDown after it was killed")


@contextlib.contextmanager
def run_at(address: str, *flags: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run `rmapd run`; at the end kill it and its checker.

    A checker that survives its supervisor would end in order and hold the lock until then.
    """
    command = [RMAPD, "run", "--listen", address, *flags]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            yield process
        finally:
            checker = checker_of(process.pid) if process.poll() is None else 0
            process.kill()
            if checker:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(checker, signal.SIGKILL)


def test_violation_alert_fires_within_two_scrapes(tmp_path: Path) -> None:
    """The page of a real run is served again with one number changed, as if M1 was violated."""
    with daemon() as (process, url):
        text = fetch(f"{url}/metrics")[1]
        process.send_signal(signal.SIGTERM)
        process.wait(30)
    was = 'rmapd_first_violation_time_seconds{invariant="M1"} 0.0'
    assert was in text
    assert list(text_string_to_metric_families(text))
    pages = [text]

    def page() -> bytes:
        return pages[-1].encode()

    with replayed(page) as at, prometheus(tmp_path, at) as api:
        until(lambda: api.query(VIOLATED), 20, "the page is scraped")
        time.sleep(2 * SCRAPE_SECONDS)
        assert ("RmapdInvariantViolated", at) not in api.firing()
        pages.append(text.replace(was, was.replace("0.0", f"{time.time()}")))
        fired = until(
            lambda: api.firing().get(("RmapdInvariantViolated", at)),
            2 * SCRAPE_SECONDS + 1,
            "RmapdInvariantViolated",
        )
        assert (fired["invariant"], fired["severity"]) == ("M1", "critical")
        (snapshot_time,) = re.findall(r"^rmapd_snapshot_time_seconds .*$", text, re.MULTILINE)
        pages.append(text.replace(snapshot_time, f"rmapd_snapshot_time_seconds {time.time() - 90}"))
        until(
            lambda: ("RmapdStalled", at) in api.firing(),
            20,
            "RmapdStalled, because the last snapshot is 90 s old",
        )


def test_violation_of_an_earlier_run_of_this_boot_still_fires(
    tmp_path: Path, reachable: Path
) -> None:
    """A restart clears no violation; the store of the earlier run is made here."""
    path, seen = reachable / "rmapd.db", time.time() - 1
    earlier = Store(path, os.uname().release, 64 << 20, 90)
    earlier.keep([Violation(FINDING, seen, seen)], {})
    earlier.close()
    user = daemons_user()
    for file in reachable.iterdir():
        os.chown(file, user.pw_uid, user.pw_gid)
    with daemon("--store", str(path)) as (_, url):
        at = url.removeprefix("http://")
        with prometheus(tmp_path, at) as api:
            fired = until(
                lambda: api.firing().get(("RmapdInvariantViolated", at)),
                20,
                "RmapdInvariantViolated of an earlier run",
            )
            assert (fired["invariant"], fired["severity"]) == ("M1", "critical")
            (first,) = api.query(f"{VIOLATED} > 0")
            assert float(first["value"][1]) == pytest.approx(seen, abs=0.001)


def test_refused_reload_raises_an_alert_until_one_is_taken(tmp_path: Path, reachable: Path) -> None:
    path = reachable / "rmapd.toml"
    path.write_text("budget = 0.02\n")
    with daemon("--config", str(path)) as (process, url):
        at = url.removeprefix("http://")
        with prometheus(tmp_path, at) as api:
            until(lambda: api.query("rmapd_budget_ratio == 0.02"), 20, "the budget is exported")
            path.write_text("budgets = 0.02\n")
            process.send_signal(signal.SIGHUP)
            alert = ("RmapdConfigReloadFailed", at)
            until(lambda: alert in api.firing(), 20, "a refused reload fires")
            path.write_text("budget = 0.03\n")
            process.send_signal(signal.SIGHUP)
            until(lambda: api.query("rmapd_budget_ratio == 0.03"), 20, "the budget is changed")
            until(lambda: alert not in api.firing(), 20, "a reload that is taken ends it")
