"""A workload for a guest with rmapd_faults loaded: compact the memory of a process named `victim` while N of its entries are left behind.

usage: victim.py [N [FAULT]]     (root; FAULT: left_behind, passed_over or one_skipped)

Prints one JSON line: name, how often it struck, when first, pid, the victim's pid. The victim sleeps on and must not be touched.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.workloads.migrate import touched

PARAMETERS = Path("/sys/module/rmapd_faults/parameters")
PR_SET_NAME = 15
BLOCKS = 768  # MiB of the guest's three: enough that compaction, which moves what lies low, must move some of it


def be_a_victim(shares: bool) -> None:
    """Map fragmented memory, say so, and sleep for ever. Executed, not only forked: nothing of it shares an anon_vma with others,
    unless it is to have a child, which sleeps beside it."""
    ctypes.CDLL(None).prctl(PR_SET_NAME, b"victim", 0, 0, 0)
    blocks = [touched(1 << 20) for _ in range(BLOCKS)]
    del blocks[::2]
    if not shares or os.fork():
        print("ready", flush=True)
    sys.stdout.close()
    while True:
        signal.pause()


def spawn(shares: bool = False) -> subprocess.Popen[bytes]:
    """A victim that sleeps."""
    command = [sys.executable, "-m", "tests.workloads.victim", "share" if shares else "be"]
    victim = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True
    )
    assert victim.stdout
    victim.stdout.readline()
    time.sleep(
        2
    )  # until it sleeps: a victim that touches what is left behind meets the kernel's BUG with a page-table lock held
    return victim


def compact() -> None:
    Path("/proc/sys/vm/compact_memory").write_text("1")


def struck(fault: str) -> tuple[int, float]:
    """How often the fault struck, and when first (seconds of the wall clock)."""
    lines = (line.split() for line in (PARAMETERS / "struck").read_text().splitlines())
    return next((int(times), int(first) / 1e9) for name, times, first in lines if name == fault)


def main(count: int, fault: str = "left_behind") -> None:
    victim = spawn(shares=fault == "one_skipped")
    (PARAMETERS / "arm").write_text(f"{fault} {count}")
    compact()
    victim.returncode = 0  # it is meant to outlive us
    times, first = struck(fault)
    print(
        "fault "
        + json.dumps(
            {
                "name": fault,
                "struck": times,
                "first": first,
                "pid": os.getpid(),
                "victim": victim.pid,
            }
        ),
        flush=True,
    )


if __name__ == "__main__":
    if sys.argv[1:] in (["be"], ["share"]):
        be_a_victim(sys.argv[1] == "share")
    main(int((sys.argv[1:] or ["5"])[0]), *sys.argv[2:3])
