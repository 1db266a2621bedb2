"""rmapd is its own victim: entries stay in the heap of the checker, and a kernel BUG kills it."""

from __future__ import annotations

import json
from pathlib import Path

from tests.vm.faults import reported
from tests.vm.guest import run


def test_report_names_the_entry_if_the_kernel_kills_the_checker(
    module: Path,
) -> None:
    command = (
        # NUMA balancing and khugepaged would take the page-table lock of the killed task and spin.
        "sysctl -q kernel.panic_on_oops=0 kernel.numa_balancing=0; "
        f"echo never > /sys/kernel/mm/transparent_hugepage/enabled; insmod {module} && "
        "{ rmapd exec --report $OUT/r.json --timeout 300 -- python -m tests.workloads.own_judge; "
        "echo exit $?; sync; "
        "python -c 'from tests.support.daemons import remaining; "
        'print("remaining", remaining())\'; }'
    )
    result = run(
        "6.1",
        command,
        append="rmapd_faults=guest",
        nodes=2,
        expect_bug=True,
        label="own-judge",
        timeout=900,
    )
    print(result.output)
    dmesg = (result.folder / "dmesg").read_text()
    assert "kernel BUG at include/linux/swapops.h" in dmesg
    (fault,) = reported(result)
    assert fault["struck"] > 0
    assert "exit 71" in result.output, result.output
    report = json.loads((result.folder / "r.json").read_text())
    print(report["ended_early"])
    assert (
        report["ended_early"]["reason"]
        == "the checker died: the kernel killed its main thread, and the process stays"
    )
    assert report["ended_early"]["detached"] is True
    assert "remaining []" in result.output
    assert report["invariants"]["M1"]["checks"]["violated"] == fault["struck"]
    (violation,) = (
        v for v in report["violations"] if v["invariant"] == "M1" and v["verdict"] == "violated"
    )
    assert violation["evidence"]["entries"][0]["tgid"] == fault["judge"]
    assert violation["evidence"]["entries"][0]["comm"] == "rmapd-checker"
    assert f"rmapd-checker[{fault['judge']}] at 0x" in violation["summary"]
    assert report["migration"]["outstanding"] == 0
