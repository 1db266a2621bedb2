"""A workload for a guest with rmapd_faults loaded: a task keeps the anon_vma lock of its heap.

usage: kept_lock.py calls|waits [SECONDS]     (root)

do_brk_flags() fails and keeps the lock (error_locked). Then the task `calls`: it makes system calls
that need no lock of the mm. Or it `waits`: it grows its heap once more, and waits for itself. After
this time another process has the module give the lock back. Prints one JSON line: name, how often
it struck, when first, pid of the task.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

from tests.workloads.faults import arm, grow_heap, must
from tests.workloads.victim import struck


def keep(then: str, seconds: float) -> None:
    """Keep the lock, and never give it back; nothing here may change the heap or fork."""
    arm("error_locked")
    must(not grow_heap(), "brk was to fail")
    end = time.monotonic() + seconds
    if then == "waits":
        grow_heap()
    while time.monotonic() < end:
        time.sleep(0.02)
    os._exit(0)


def main(then: str, seconds: float) -> None:
    # Executed and not only forked: a child shares its anon_vma's root with its parent.
    command = [sys.executable, "-m", "tests.workloads.kept_lock", "keep", then, str(seconds + 1)]
    with subprocess.Popen(command) as holder:
        time.sleep(seconds)
        arm("release")
    times, first = struck("error_locked")
    report = {"name": "error_locked", "struck": times, "first": first, "pid": holder.pid}
    print("fault " + json.dumps(report), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "keep":
        keep(sys.argv[2], float(sys.argv[3]))
    main(sys.argv[1], float(sys.argv[2]) if len(sys.argv) > 2 else 15.0)
