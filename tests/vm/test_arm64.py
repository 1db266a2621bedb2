"""Guests for arm64 boot, run a command, and fail as the others do. rmapd is silent in them.

RMAPD_VM_KERNELS names the versions (default 6.1), of which those run that are in arm64.toml.
"""

from __future__ import annotations

import json
import os
import re
from typing import Any

import pytest

from tests.vm.guest import ROOT, GuestError, Result, image, kernels, run

VERSIONS = (os.environ.get("RMAPD_VM_KERNELS") or "6.1").split()
KERNELS = [name for name in kernels("arm64") if name.partition("-")[0] in VERSIONS]
OLDEST = "6.1-arm64"


def read(result: Result, name: str) -> Any:
    path = result.folder / name
    assert path.exists(), result.output
    return json.loads(path.read_text())


def silent_and_accounted_for(report: dict[str, Any]) -> None:
    """Check that nothing is wrong, and that each entry has an end (docs/ARCHITECTURE.md)."""
    checks = {name: one["checks"] for name, one in report["invariants"].items()}
    print("\n" + "\n".join(f"{name} {one}" for name, one in checks.items()))
    assert report["violations"] == []
    assert not [name for name, one in checks.items() if one["violated"] or one["suspect"]]
    assert {loss for loss, count in report["lost"].items() if count} <= {"missed_runs"}
    entries = report["migration"]
    decided = sum(
        entries[f"entries_{how}"] for how in ("cleared", "violated", "suspect", "unverifiable")
    )
    assert entries["entries_recorded"] + entries["entries_copied"] == (
        entries["entries_removed"] + decided + entries["outstanding"]
    )


@pytest.mark.parametrize("kernel", KERNELS)
def test_command_runs_and_its_files_come_back(kernel: str) -> None:
    command = (
        "uname -m; uname -r; getconf PAGESIZE; head -1 README.md; rmapd --version;"
        " modprobe zram; echo node $(cat /sys/devices/system/node/online); nproc;"
        " cp /proc/uptime $OUT/uptime; touch $RMAPD_CACHE/there; touch README.md; exit 7"
    )
    result = run(kernel, command, label="boot", nodes=2, timeout=180)
    assert result.code == 7, result.output
    lines = result.output.splitlines()
    release = image(kernel).name.removeprefix("vmlinuz-")
    assert lines[:3] == ["aarch64", release, "16384" if "16k" in kernel else "4096"]
    assert lines[3] == (ROOT / "README.md").read_text().splitlines()[0]
    assert re.match(r"rmapd +\d", lines[4]), result.output
    assert "modprobe" not in result.output, "the kernel's modules are there"
    assert lines[lines.index("node 0-1") + 1] == "2"
    assert lines[-1].endswith("Read-only file system")
    assert float((result.folder / "uptime").read_text().split()[0]) < 60
    assert (result.folder.parent / f"{kernel}-cache/there").exists()


@pytest.mark.parametrize("kernel", KERNELS)
def test_migrations_hold(kernel: str) -> None:
    load = "python -m tests.workloads.migrate 5000"
    result = run(kernel, f"rmapd exec --report $OUT/r.json -- {load}; echo load $?", label="load")
    assert "load 0" in result.output, result.output
    report = read(result, "r.json")
    silent_and_accounted_for(report)
    assert report["invariants"]["M1"]["checks"]["holds"] > 2_500


def test_memory_has_tags_where_they_are_asked_for() -> None:
    shown = "python -c 'import ctypes; print(ctypes.CDLL(None).getauxval(26) >> 18 & 1)'"
    for memory_tags in (False, True):
        result = run(OLDEST, shown, label="tags", timeout=180, memory_tags=memory_tags)
        assert result.output.strip() == str(int(memory_tags))


def test_kernel_that_panics_is_an_error_with_its_console() -> None:
    with pytest.raises(GuestError, match=r"(?s)died\n.*sysrq triggered crash"):
        run(OLDEST, "echo c > /proc/sysrq-trigger", label="panic", timeout=180)


def test_kernel_that_complains_is_an_error() -> None:
    forged = "echo 'BUG: a forged one' > /dev/kmsg"
    with pytest.raises(GuestError, match=r"complained:\n.*BUG: a forged one"):
        run(OLDEST, forged, label="complaint", timeout=180)
    assert run(OLDEST, forged, label="complaint", timeout=180, expect_bug=True).code == 0


def test_command_that_does_not_end_is_an_error() -> None:
    with pytest.raises(GuestError, match="did not end within 40 s"):
        run(OLDEST, "sleep 600", label="hang", timeout=40)
