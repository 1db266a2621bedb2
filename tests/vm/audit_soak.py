"""Audit the mms of healthy kernels, pass after pass, under stress-ng and the kernel's tests of mm.

usage: python -m tests.vm.audit_soak SECONDS KERNEL...  boots each kernel of the ladder in a guest
       python -m tests.vm.audit_soak SECONDS here       audits this kernel (root; stress-ng only)

SECONDS: of stress-ng. No function is hooked. Prints a row per kernel for
docs/measurements/DETECTION.md. Exits with 1 if anything is violated or suspect, if 0.1 % of the
checks or more are unverifiable, or if fewer than 10^6 VMAs were looked at.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from tests.vm.guest import ladder, run
from tests.vm.selftests import built
from tracer.config import Config
from tracer.daemon.levels import AUDIT_ONLY
from tracer.daemon.probes import running_kernel
from tracer.daemon.session import open_session
from tracer.invariants.verdict import Verdict

WANTED = 10**6
"""VMAs to be looked at on each kernel."""
STRESSORS = "fork mmap mremap brk mprotect munmap mmapfixed madvise rmap stack".split()
HERE = "here"
_LOOKED_AT = ("mms", "vmas", "nodes", "climbs", "anon_pages")
_DATA_LIMIT_KIB = 256 << 10
"""Limits the heap of the brk stressor."""
_SELFTEST_SECONDS = 60
_COUNTED_BY_US = ("6.1",)
"""There a doubt switches on a tracepoint; under load that kills guests of several threads."""
_OVERHEAD_SECONDS = 3000

Row = dict[str, int]


def load(seconds: int, selftests: str) -> str:
    """Return the commands of the load. selftests: the folder of the kernel's tests, or empty."""
    stress = " ".join(f"--{name} 1" for name in STRESSORS)
    own = f"python -m tests.workloads.selftests {selftests} {_SELFTEST_SECONDS}; "
    return (own if selftests else "") + (
        f"ulimit -d {_DATA_LIMIT_KIB}; stress-ng --temp-path /tmp --quiet --timeout {seconds}"
        f" {stress} --mmap-bytes 16M --mremap-bytes 16M"
    )


def audit(command: str) -> Row:
    """Audit this kernel while a command runs; return what was looked at and how checks ended."""
    config = msgspec.structs.replace(Config(), fidelity=AUDIT_ONLY, cache="")
    with open_session(config, running_kernel()) as session:
        if session.audit is None:
            raise SystemExit(session.audit_reason)
        with subprocess.Popen(["sh", "-c", command]) as running:
            while running.poll() is None:
                session.audit.whole_pass(time.sleep)
        progress, tally = session.audit.progress(), session.checker.tally
        for violation in tally.violations.values():
            print(f"{violation.first.signature}\n{violation.first.evidence}", flush=True)
        ended: dict[str, int] = {
            verdict.value: sum(n for (_, found), n in tally.checks.items() if found is verdict)
            for verdict in Verdict
        }
    looked = {kind: progress.counted.get(kind, 0) for kind in _LOOKED_AT}
    return looked | {"cleared": progress.doubts.get("cleared", 0)} | ended


def show(kernel: str, row: Mapping[str, int]) -> bool:
    """Print a row; return whether the kernel was healthy and enough was looked at."""
    print(f"| {kernel} | {' | '.join(f'{count:,}' for count in row.values())} |", flush=True)
    return (
        row["violated"] == row["suspect"] == 0
        and row["vmas"] >= WANTED
        and 1000 * row["unverifiable"] < row["holds"]
    )


def in_guest(kernel: str, seconds: int) -> Row:
    """Boot a kernel, audit it there, and return what was found."""
    result = run(
        kernel,
        f"python -m tests.vm.audit_soak {seconds} {HERE} {built(kernel)} $OUT/row.json",
        label="audit-soak",
        append="numa=fake=2",
        memory="4G",
        cpus=3,
        one_thread=kernel in _COUNTED_BY_US,
        timeout=4 * seconds + _OVERHEAD_SECONDS,
    )
    found: dict[str, Any] = json.loads((result.folder / "row.json").read_text())
    if found["violated"]:
        print(result.output)
    return found


def main(arguments: list[str]) -> int:
    if len(arguments) < 2 or not arguments[0].isdigit():
        print(__doc__, file=sys.stderr)
        return 2
    seconds, kernels = int(arguments[0]), arguments[1:]
    if kernels[0] == HERE:
        selftests, out = kernels[1:] or ("", "")
        row = audit(load(seconds, selftests))
        if out:
            Path(out).write_text(json.dumps(row))
        return 0 if show(running_kernel().release, row) else 1
    if {*kernels} - {*ladder()}:
        print(f"kernels: {', '.join(ladder())}, {HERE}", file=sys.stderr)
        return 2
    return 0 if all([show(kernel, in_guest(kernel, seconds)) for kernel in kernels]) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
