"""PREEMPT_RT: what is covered, a healthy load, a bug that the kernel has, and how doctor ends.

Its rwsem is another one (docs/KERNELS.md). 6.18.15 has CVE-2026-23416 (stock_bugs.toml, 30).
RMAPD_VM_RT names the kernels.
"""

from __future__ import annotations

import json
import os
import re
from typing import Any

import pytest

from tests.vm.guest import Result, run

KERNELS = (os.environ.get("RMAPD_VM_RT") or "6.18-rt").split()
PREEMPTED = "missed_runs"
"""The only loss that a kernel makes that preempts tasks in BPF programs."""
BY_LOCK = ("L1", "L2", "L3", "L4", "L5", "L6", "V1", "V2", "V5", "V6")
"""What reads an rwsem, or is of a probe object that does."""
LOAD = "python -m tests.workloads.vma 200; python -m tests.workloads.migrate 2000"
NONE_LEFT = (
    "import sys; from tracer.bpf.programs import program_ids;"
    ' sys.exit(any(name.startswith("rmapd_") for _, name in program_ids()))'
)


@pytest.fixture(scope="module", params=KERNELS)
def guest(request: pytest.FixtureRequest) -> Result:
    """Examine the kernel, then watch a healthy load and a bug."""
    command = (
        "rmapd doctor > $OUT/text & doctor=$!; "
        "begun=$(date +%s.%N); until [ -s $OUT/text ]; do sleep 0.1; done; "
        "printed=$(date +%s.%N); wait $doctor; ended=$(date +%s.%N); "
        f"until python -c '{NONE_LEFT}'; do sleep 0.2; done; "
        'echo "times $begun $printed $ended $(date +%s.%N)"; '
        f"rmapd exec --report $OUT/r.json -- sh -c '{LOAD}'; echo load $?; "
        "rmapd exec --report $OUT/bug.json -- python -m tests.workloads.seal_merge; echo bug $?"
    )
    return run(request.param, command, label="realtime", timeout=2400)


def read(result: Result, name: str) -> Any:
    return json.loads((result.folder / name).read_text())


def test_every_check_that_reads_an_rwsem_is_covered_in_full(guest: Result) -> None:
    found = read(guest, "r.json")
    covered = {name: (one["coverage"], one["reason"]) for name, one in found["invariants"].items()}
    print("\n" + "\n".join(f"{name} {level} {why}" for name, (level, why) in covered.items()))
    assert {name: covered[name] for name in BY_LOCK} == dict.fromkeys(BY_LOCK, ("full", ""))
    assert "none" not in {level for level, _ in covered.values()}
    assert "on PREEMPT_RT" in covered["L7"][1]


def test_doctor_names_preempt_rt_in_one_line(guest: Result) -> None:
    lines = (guest.folder / "text").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith("  PREEMPT_RT "))
    print(line)
    assert re.match(r"  PREEMPT_RT +yes: rwsems are rtmutexes; no THP", line)


def test_doctor_does_not_wait_for_the_probes_to_be_detached(guest: Result) -> None:
    (times,) = re.findall(r"^times (.*)$", guest.output, re.M)
    begun, printed, ended, detached = map(float, times.split())
    print(
        f"\ndoctor printed after {printed - begun:.1f} s and ended {ended - printed:.1f} s later;"
        f" {detached - ended:.1f} s later no program was left"
    )
    assert ended - printed < 10


def test_healthy_load_is_silent_and_checked(guest: Result) -> None:
    assert "load 0" in guest.output, guest.output
    report = read(guest, "r.json")
    checks = {name: one["checks"] for name, one in report["invariants"].items()}
    print("\n" + "\n".join(f"{name} {one}" for name, one in checks.items()))
    print({loss: count for loss, count in report["lost"].items() if count})
    assert report["violations"] == []
    assert not [name for name, one in checks.items() if one["violated"] or one["suspect"]]
    assert min(checks[name]["holds"] for name in BY_LOCK) > 200
    assert {loss for loss, count in report["lost"].items() if count} <= {PREEMPTED}


def test_bug_of_the_stock_kernel_is_found(guest: Result) -> None:
    assert "bug 3" in guest.output, guest.output
    found = read(guest, "bug.json")["violations"]
    for violation in found:
        print(violation["count"], violation["signature"], violation["summary"])
    assert {(v["invariant"], v["function"], v["verdict"]) for v in found} == {
        ("V6", "vma_modify", "violated")
    }
