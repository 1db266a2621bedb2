"""Run a daemon with a small budget during and after a storm of windows.

Runs in a guest, and records the fidelity each second.

usage: governed.py OUT.json
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.support.daemons import fetch, is_ready, until
from tests.vm.alert import AT, URL
from tracer.daemon.probes import probes_folder

PACE = {"look": 1, "over": 5, "under": 5, "rest": 10}
SETTINGS = [
    "env",
    "RMAPD_BUDGET=0.005",
    "RMAPD_SAMPLED_WINDOWS=5",
    sys.executable,
    "-m",
    "tests.support.altered",
    str(probes_folder()),
]
STORM = "while :; do python -m tests.workloads.vma 1000 expand split_merge; done"
STORM_SECONDS, PATIENCE_SECONDS = 90, 600


def look() -> dict[str, float]:
    """Return the samples of rmapd on the metrics page."""
    rows = [
        line.rpartition(" ")
        for line in fetch(f"{URL}/metrics")[1].splitlines()
        if line.startswith("rmapd_")
    ]
    return {name: float(value) for name, _, value in rows}


def seen() -> dict[str, Any]:
    page = look()
    (level,) = [
        name.split('"')[1]
        for name, value in page.items()
        if name.startswith("rmapd_fidelity{") and value
    ]
    covered = {
        name.split('"')[1]: value
        for name, value in page.items()
        if name.startswith("rmapd_invariant_coverage{")
    }
    checks = {name: value for name, value in page.items() if name.startswith("rmapd_checks_total{")}
    wrong = sum(value for name, value in checks.items() if "violated" in name or "suspect" in name)
    windows = sum(value for name, value in page.items() if name.startswith("rmapd_windows_total{"))
    counts = {
        "wrong": wrong,
        "windows": windows,
        "unsampled": page["rmapd_windows_unsampled_total"],
    }
    return {"at": time.monotonic(), "level": level, "covered": covered} | counts


def main(out: str) -> None:
    found = []
    command = [*SETTINGS, json.dumps(PACE), "run", "--listen", AT, "--store", ""]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as daemon:
        try:
            until(lambda: is_ready(URL), PATIENCE_SECONDS, "the gate is open")
            found.append(seen())
            with subprocess.Popen(
                ["sh", "-c", STORM], stdout=subprocess.DEVNULL, start_new_session=True
            ) as storm:
                end = time.monotonic() + STORM_SECONDS
                while time.monotonic() < end:
                    time.sleep(1)
                    found.append(seen())
                subprocess.run(["pkill", "-9", "-s", str(storm.pid)], check=True)
            end = time.monotonic() + PATIENCE_SECONDS
            while found[-1]["level"] != "full" and time.monotonic() < end:
                time.sleep(1)
                found.append(seen())
        finally:
            daemon.terminate()
            code = daemon.wait(300)
    Path(out).write_text(json.dumps({"exit": code, "seen": found}))


if __name__ == "__main__":
    main(sys.argv[1])
