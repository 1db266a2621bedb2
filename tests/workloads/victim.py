"""A workload for a guest with rmapd_faults loaded: compact the memory of a process named `victim` while N of its entries are left behind.

usage: victim.py [N [FAULT]]     (root; FAULT: left_behind or passed_over)

Prints how often the fault struck and the victim's pid; the victim sleeps on and must not be touched.
"""

from __future__ import annotations

import ctypes
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.workloads.migrate import touched

PARAMETERS = Path("/sys/module/rmapd_faults/parameters")
PR_SET_NAME = 15
BLOCKS = 768  # MiB of the guest's three: enough that compaction, which moves what lies low, must move some of it


def be_a_victim() -> None:
    """Map fragmented memory, say so, and sleep for ever. Executed, not only forked: nothing of it shares an anon_vma with others."""
    ctypes.CDLL(None).prctl(PR_SET_NAME, b"victim", 0, 0, 0)
    blocks = [touched(1 << 20) for _ in range(BLOCKS)]
    del blocks[::2]
    print("ready", flush=True)
    sys.stdout.close()
    while True:
        signal.pause()


def main(count: int, fault: str = "left_behind") -> None:
    command = [sys.executable, "-m", "tests.workloads.victim", "be"]
    victim = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True)
    assert victim.stdout
    victim.stdout.readline()
    time.sleep(2)  # until it sleeps: a victim that touches what is left behind meets the kernel's BUG with a page-table lock held
    (PARAMETERS / fault).write_text(str(count))
    Path("/proc/sys/vm/compact_memory").write_text("1")
    (PARAMETERS / fault).write_text("0")
    victim.returncode = 0  # it is meant to outlive us
    print(f"struck {(PARAMETERS / 'struck').read_text().strip()} victim {victim.pid}", flush=True)


if __name__ == "__main__":
    be_a_victim() if sys.argv[1:] == ["be"] else main(int((sys.argv[1:] or ["5"])[0]), *sys.argv[2:3])
