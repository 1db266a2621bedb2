"""Every recorded migration entry gets a verdict on this kernel.

Five stressors run, whose entries end in five ways.
"""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.live.conftest import ROOT, daemon, run_exec
from tests.support.daemons import fetch, remaining, until

STRESSORS = str(ROOT / "tests/workloads/five_stressors.sh")


def accounted(migration: dict[str, int]) -> bool:
    """Check that recorded and copied entries are removed, decided or outstanding."""
    decided = sum(
        migration[f"entries_{verdict}"]
        for verdict in ("cleared", "violated", "suspect", "unverifiable")
    )
    recorded = migration["entries_recorded"] + migration["entries_copied"]
    return recorded == migration["entries_removed"] + decided + migration["outstanding"]


def test_every_recorded_entry_has_a_verdict_after_exec(tmp_path: Path) -> None:
    done, report = run_exec(tmp_path, command=[STRESSORS, "20"])
    assert done.returncode == 0, done.stdout + done.stderr
    migration, checks = report["migration"], report["invariants"]["M1"]["checks"]
    assert migration["entries_recorded"] > 20_000
    assert accounted(migration), migration
    assert migration["outstanding"] == 0
    assert (
        sum(checks.values())
        == migration["entries_recorded"] + migration["entries_copied"] + report["lost"]["ledger"]
    ), (checks, migration)
    assert (checks["violated"], checks["suspect"]) == (0, 0), report["violations"]
    assert not remaining()


def test_entries_of_running_daemon_are_outstanding_for_seconds_only() -> None:
    def migration(url: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(fetch(f"{url}/api/v1/migration")[1])
        return found

    with daemon() as (_, url), subprocess.Popen([STRESSORS, "20"]) as stressors:
        seen = []
        while stressors.poll() is None:
            seen.append(migration(url))
            assert accounted(seen[-1]), seen[-1]
            time.sleep(0.5)
        assert stressors.returncode == 0
        if not max(one["outstanding"] for one in seen):
            pytest.fail("no entry was ever outstanding: the test checked nothing")
        until(lambda: migration(url)["outstanding"] == 0, 30, "every entry has a verdict")
