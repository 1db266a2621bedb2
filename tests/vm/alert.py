"""Measure the time from a fault to the log line, the metric and the alert.

Runs in a guest with rmapd_faults loaded, beside rmapd and Debian's Prometheus with the rules of
rmapd.

usage: alert.py OUT.json FAULT...

Times are seconds from the strike by the guest's clock. The alerts keep their `for` durations: the
alert for a violation has none.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from threading import Thread
from typing import IO, Any

from tests.support import prometheus
from tests.support.daemons import RMAPD, fetch, is_ready, sample, until
from tests.support.prometheus import RULES, Prometheus
from tests.workloads.faults import OPERATIONS, arm
from tests.workloads.victim import struck

SCRAPE_SECONDS = 15
AT = "127.0.0.1:9533"
URL = f"http://{AT}"
ALERT = "RmapdInvariantViolated"


def listen(stream: IO[str], logged: dict[str, float]) -> None:
    """Note when the first line of each invariant arrives, in seconds since the epoch."""
    for line in stream:
        logged.setdefault(json.loads(line)["invariant"], time.time())


def violated(api: Prometheus) -> set[str]:
    """Return the invariants whose alert fires."""
    return {
        alert["labels"]["invariant"]
        for alert in api.get("/api/v1/alerts")["alerts"]
        if alert["labels"]["alertname"] == ALERT and alert["state"] == "firing"
    }


def measure_delays(fault: str, api: Prometheus, logged: dict[str, float]) -> dict[str, Any]:
    """Cause a fault once and wait for the log line, the metric and the alert.

    The alert is awaited only for invariants that were not violated before.
    """
    before, counted = violated(api), pages()
    OPERATIONS[fault](fault)
    arm(f"{fault} 0")
    times, first = struck(fault)
    shown: dict[str, float] = {}
    fired: dict[str, float] = {}
    end = time.monotonic() + 4 * SCRAPE_SECONDS
    while time.monotonic() < end:
        now = time.time()
        for name in {name for name, count in pages().items() if count > counted[name]} - {*shown}:
            shown[name] = now - first
        for name in violated(api) - before - {*fired}:
            fired[name] = now - first
        if shown and {*shown} - before == {*fired}:
            break
        time.sleep(0.2)
    lines = {
        name: logged[name] - first for name in shown if name in logged and logged[name] >= first
    }
    return {
        "fault": fault,
        "struck": times,
        "logged": lines,
        "shown": shown,
        "fired": fired,
        "already": sorted(before),
    }


def pages() -> dict[str, float]:
    """Return the violations by invariant on the metrics page."""
    head = 'rmapd_violations_total{invariant="'
    rows = [line for line in fetch(f"{URL}/metrics")[1].splitlines() if line.startswith(head)]
    return {line[len(head) :].partition('"')[0]: float(line.split()[1]) for line in rows}


def main(out: str, faults: list[str]) -> None:
    logged: dict[str, float] = {}
    with (
        tempfile.TemporaryDirectory() as folder,
        subprocess.Popen(
            [RMAPD, "run", "--listen", AT, "--fidelity", "full", "--store", ""],
            stdout=subprocess.PIPE,
            text=True,
        ) as process,
    ):
        assert process.stdout
        Thread(target=listen, args=(process.stdout, logged), daemon=True).start()
        try:
            config = {
                "rule_files": [str(RULES / "rules.yaml"), str(RULES / "alerts.yaml")],
                "scrape_configs": [{"job_name": "rmapd", "static_configs": [{"targets": [AT]}]}],
                "global": {
                    "scrape_interval": f"{SCRAPE_SECONDS}s",
                    "evaluation_interval": f"{SCRAPE_SECONDS}s",
                },
            }
            with prometheus.running(Path(folder), config, patience=600) as api:
                until(lambda: is_ready(URL), 900, "the gate is open")
                until(
                    lambda: api.query("rmapd_violations_total"),
                    8 * SCRAPE_SECONDS,
                    "the page is scraped",
                )
                time.sleep(2 * SCRAPE_SECONDS)
                quiet, gate = violated(api), sample(URL, "rmapd_gate_open")
                results = [measure_delays(fault, api, logged) for fault in faults]
        finally:
            process.terminate()
            code = process.wait(300)
    Path(out).write_text(
        json.dumps(
            {"before": sorted(quiet), "gate": gate, "results": results, "exit": code}, indent=1
        )
    )


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
