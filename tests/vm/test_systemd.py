"""The package and its unit under a real systemd on Debian: ready, reload, watchdog, stop, removal; probes of both kinds in the sandbox.

`make test-systemd`. A guest of its own disk (debian.py), not of virtme-ng: /dev, /sys and /proc are as on an installed machine.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.vm.debian import run
from tests.vm.guest import ROOT

FULL = "M1 M2 M3 M4 M5 L1 L2 L3 L4 L5 L6 V1 V2 V5".split()
ATTACHING = sum(1 << cap for cap in (8, 21, 34, 38, 39))
"""CAP_SETPCAP, SYS_ADMIN, SYSLOG, PERFMON, BPF: the unit's bounding set."""


@pytest.fixture(scope="module")
def package() -> Path:
    missing = [tool for tool in ("qemu-system-x86_64", "mmdebstrap", "dh") if not shutil.which(tool)]
    if missing and os.environ.get("RMAPD_REQUIRE_KERNEL") != "1":
        pytest.skip(f"no {', '.join(missing)}")
    if "RMAPD_DEB" not in os.environ:
        subprocess.run(["make", "--no-print-directory", "deb"], check=True, cwd=ROOT)
    (found,) = [Path(os.environ["RMAPD_DEB"])] if "RMAPD_DEB" in os.environ else (ROOT / "build/deb").glob("*.deb")
    return found


def facts(package: Path, label: str, parts: str = "", append: str = "") -> dict[str, Any]:
    files = [package, ROOT / "tests/vm/systemd.py", ROOT / "tests/workloads/migrate.py"]
    result = run(f"python3 systemd.py {parts}", files, label=label, append=append)
    print(result.output)
    assert result.code == 0, result.output
    found: dict[str, Any] = json.loads((result.folder / "facts.json").read_text())
    return found


def started(found: dict[str, Any]) -> None:
    assert found["start"]["code"] == 0
    assert ["activating", 200] not in found["start"]["seen"], "READY is said as soon as the gate is open"
    assert not [state for state in found["start"]["seen"] if state[0] == "active" and state[1] != 200], "and not before"
    assert "activating" in {state for state, _ in found["start"]["seen"]}
    assert found["start"]["ready"] == 200
    before, after = found["rights"]["attaching"], found["rights"]["judging"]
    assert int(before["CapPrm"], 16) == int(before["CapBnd"], 16) == ATTACHING
    assert {int(after[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {0}
    assert (after["NoNewPrivs"], after["Seccomp"]) == ("1", "2")
    assert {int(mask, 16) for mask in found["threads"]} == {0}
    doctor = found["doctor"]["invariants"]
    levels = {"full": 1.0, "partial": 0.5, "none": 0.0}
    outside = {f'rmapd_invariant_coverage{{invariant="{name}"}}': levels[one["coverage"]] for name, one in doctor.items()}
    assert found["coverage"] == outside, "the sandbox costs no coverage"
    assert {name for name, one in doctor.items() if one["coverage"] == "full"} >= set(FULL)
    assert found["judged"]['rmapd_checks_total{invariant="M1",verdict="holds"}'] > 2000
    assert found["judged"]['rmapd_probe_runs_total{hook="set_migration_pte"}'] > 2000
    assert found["judged"]["rmapd_oracle_ready"] == 1
    assert not any(value for name, value in found["judged"].items() if "violat" in name or "suspect" in name)


def test_the_life_of_a_unit(package: Path) -> None:
    found = facts(package, "systemd")
    assert found["install"] == 0
    assert (found["before"]["ours"], found["after doctor"]["ours"]) == (0, 0)
    started(found)
    assert "tracing" in found["kinds"], "fentry"
    reloaded = found["reload"]
    assert reloaded["good"] == 0
    assert "patrol_seconds 30; a restart is needed for maps" in reloaded["taken"]
    assert reloaded["bad"] != 0
    assert "patrol_seconds" in reloaded["said"], "the nearest key is named"
    assert (reloaded["same"], reloaded["state"], reloaded["ready"]) == (True, "active", 200)
    assert 25 < found["watchdog"]["killed"] < 130
    assert (found["watchdog"]["restarts"], found["watchdog"]["ready"]) == ("1", 200)
    assert found["after restart"]["ours"] == found["running"]["ours"] > 50
    stopped = found["stop"]
    assert (stopped["code"], stopped["ActiveState"], stopped["Result"], stopped["ExecMainStatus"]) == (0, "inactive", "success", "0")
    assert stopped["programs"]["ours"] == 0
    assert stopped["programs"]["all"] <= found["before"]["all"] + 2, "systemd has a few of its own"
    assert found["security"] <= 3.0
    assert (found["enable"], found["remove"]) == (0, 0)
    assert found["removed"] == {"programs": found["removed"]["programs"], "unit": False, "configuration": True}
    assert found["removed"]["programs"]["ours"] == 0


def test_kprobes_in_the_sandbox(package: Path) -> None:
    """A kernel that preempts everywhere is hooked by kprobes (docs/ARCHITECTURE.md says why)."""
    found = facts(package, "kprobes", "install start judge stop", append="preempt=full")
    started(found)
    assert "kprobe" in found["kinds"]
    assert found["stop"]["programs"]["ours"] == 0
