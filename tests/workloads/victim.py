"""A workload for a guest with rmapd_faults loaded: leave N entries of a process behind.

usage: victim.py [N [FAULT]]     (root; FAULT: left_behind, passed_over or one_skipped)

It compacts the memory of a process named `victim`, and prints one JSON line: name, how often it
struck, when first, pid, the victim's pid. The victim sleeps on and must not be touched.
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
PR_SET_NAME, PR_SET_THP_DISABLE = 15, 41
BLOCKS = 768
"""MiB, of the guest's three GiB. Compaction moves low pages; of so many it must move some."""


def be_a_victim(shares: bool) -> None:
    """Map fragmented memory, print a line, and sleep for ever.

    The process is executed and not only forked, so that it shares no anon_vma with others. It has
    no huge pages, because khugepaged would read its entries (docs/KERNELS.md, 'khugepaged').
    shares: it has a child that sleeps beside it and shares its memory.
    """
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_NAME, b"victim", 0, 0, 0)
    libc.prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0)
    blocks = [touched(1 << 20) for _ in range(BLOCKS)]
    del blocks[::2]
    if not shares or os.fork():
        print("ready", flush=True)
    sys.stdout.close()
    while True:
        signal.pause()


def spawn(shares: bool = False) -> subprocess.Popen[bytes]:
    """Start a victim; return it when it sleeps."""
    command = [sys.executable, "-m", "tests.workloads.victim", "share" if shares else "be"]
    victim = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True
    )
    assert victim.stdout
    victim.stdout.readline()
    # A victim that touches an entry left behind triggers the kernel's BUG with a page-table lock
    # held.
    while not all(map(sleeps, family(victim.pid))):
        time.sleep(0.1)
    return victim


def family(pid: int) -> list[int]:
    """Return the ids of a process and of its children."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *map(int, children)]


def sleeps(pid: int) -> bool:
    """Return whether a process waits for a signal (pause() is ppoll() on arm64)."""
    return Path(f"/proc/{pid}/syscall").read_text().startswith(("34 ", "73 "))


def compact() -> None:
    Path("/proc/sys/vm/compact_memory").write_text("1")


def struck(fault: str) -> tuple[int, float]:
    """Return how often the fault struck, and when first (seconds of the wall clock)."""
    lines = (line.split() for line in (PARAMETERS / "struck").read_text().splitlines())
    return next((int(times), int(first) / 1e9) for name, times, first in lines if name == fault)


def main(count: int, fault: str = "left_behind") -> None:
    victim = spawn(shares=fault == "one_skipped")
    (PARAMETERS / "arm").write_text(f"{fault} {count}")
    compact()
    victim.returncode = 0  # it outlives this process; Popen must not wait for it
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
