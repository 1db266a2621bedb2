"""Guests for arm64 boot, run a command, give back what it wrote, and fail as the others do.

RMAPD_VM_KERNELS names the versions (default 6.1), of which those run that are in arm64.toml.
"""

from __future__ import annotations

import os
import re

import pytest

from tests.vm.guest import ROOT, GuestError, image, kernels, run

VERSIONS = (os.environ.get("RMAPD_VM_KERNELS") or "6.1").split()
KERNELS = [name for name in kernels("arm64") if name.partition("-")[0] in VERSIONS]
OLDEST = "6.1-arm64"


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
