"""A real violation on a real kernel: entries that remove_migration_pte() left behind are proven before the kernel's own BUG.

The module of tests/faults is built against Debian's headers of the guest's kernel (6.1, this suite's own) and loaded in the guest only.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.vm.guest import ROOT, image, run


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory) -> Path:
    release = image("6.1").name.removeprefix("vmlinuz-")
    headers = Path("/usr/src") / f"linux-headers-{release}"
    if not headers.exists() and os.environ.get("RMAPD_REQUIRE_KERNEL") != "1":
        pytest.skip(f"no {headers}: make vm-setup")
    folder = tmp_path_factory.mktemp("faults")
    shutil.copytree(ROOT / "tests/faults", folder, dirs_exist_ok=True)
    done = subprocess.run(["make", "-s", "-C", str(headers), f"M={folder}", "modules"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "rmapd_faults.ko"


@pytest.mark.parametrize("fault", ["left_behind", "passed_over"])
def test_entries_left_behind_are_proven_before_the_kernel_dies(module: Path, fault: str) -> None:
    """left_behind: the second walk comes and restores nothing. passed_over: it does not come, and M5 names the VMA."""
    command = (
        f"insmod {module} && "
        f"{{ rmapd exec --report $OUT/r.json -- python -m tests.workloads.victim 5 {fault}; echo exit $?; sync; "
        "test -s $OUT/r.json && echo rmapd-vm: the report is written > /dev/kmsg; pkill -9 victim; sleep 3; }"
    )
    result = run("6.1", command, append="rmapd_faults=guest", expect_bug=True, label=fault, timeout=900)
    assert "exit 3" in result.output, result.output
    report = json.loads((result.folder / "r.json").read_text())
    assert "struck 5" in result.output
    assert report["invariants"]["M1"]["checks"]["violated"] == 5
    assert report["invariants"]["M1"]["checks"]["suspect"] == 0
    by_invariant = {violation["invariant"]: violation for violation in report["violations"]}
    violation, visits = by_invariant["M1"], report["invariants"]["M5"]["checks"]
    if fault == "left_behind":
        assert set(by_invariant) == {"M1"}
        assert (visits["violated"], visits["unverifiable"]) == (0, 0)
        assert "the second walk visited it and did not restore it" in violation["summary"]
    else:
        assert set(by_invariant) == {"M1", "M5"}
        assert (visits["violated"], visits["unverifiable"]) == (5, 0)
        assert "did not visit a VMA" in by_invariant["M5"]["summary"]
        assert int(by_invariant["M5"]["evidence"]["first_walk"]["vm_start"], 16)
    victim = int(re.findall(r"victim (\d+)", result.output)[0])
    assert (violation["invariant"], violation["verdict"], violation["count"]) == ("M1", "violated", 5)
    assert f"victim[{victim}]" in violation["summary"]
    assert any(frame.startswith("migrate_pages+") for frame in violation["stack"])
    assert violation["evidence"]["entries"][0]["locked"] is False
    dmesg = (result.folder / "dmesg").read_text()
    written, bug = dmesg.find("rmapd-vm: the report is written"), dmesg.find("kernel BUG at include/linux/swapops.h")
    assert bug > 0, "the kernel's own BUG was expected when the victim died"
    assert 0 < written < bug


def test_the_module_refuses_an_ordinary_machine(module: Path) -> None:
    result = run("6.1", f"insmod {module}; echo insmod $?", label="refused")
    assert "insmod 1" in result.output
    assert "Operation not permitted" in result.output
