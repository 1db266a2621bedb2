"""A command of `rmapd exec`: leave migration entries behind in the heap of rmapd's own checker.

usage: own_judge.py [N]     (root; prints one JSON line: name, how often it struck, when first,
                             pid, the checker's pid)

It needs a guest with two memory nodes and rmapd_faults. The checker touches its heap all the
time, so the kernel's BUG kills it. This process sleeps on.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import signal
import sys
import time
from pathlib import Path

from tests.workloads.victim import PARAMETERS, struck
from tracer.machine.system_calls import number
from tracer.supervision.supervisor import CHECKER_NAME

SYS_MOVE_PAGES, MOVE_ALL = number("move_pages"), 4
MOST_PAGES = 512


def checker() -> int:
    """Return the pid of the checker, the other child of our supervisor."""
    supervisor = os.getppid()
    children = map(int, Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split())
    return next(
        child
        for child in children
        if Path(f"/proc/{child}/comm").read_text().strip() == CHECKER_NAME
    )


def heap(process: int) -> list[int]:
    """Return the addresses of the pages of its heap, the newest first."""
    line = next(
        line
        for line in Path(f"/proc/{process}/maps").read_text().splitlines()
        if line.endswith("[heap]")
    )
    start, end = (int(part, 16) for part in line.split()[0].split("-"))
    return list(range(start, end, mmap.PAGESIZE))[::-1][:MOST_PAGES]


def move(process: int, addresses: list[int], node: int) -> None:
    count = len(addresses)
    pages = (ctypes.c_void_p * count)(*addresses)
    nodes, status = (ctypes.c_int * count)(*[node] * count), (ctypes.c_int * count)()
    if (
        ctypes.CDLL(None, use_errno=True).syscall(
            SYS_MOVE_PAGES, process, ctypes.c_ulong(count), pages, nodes, status, MOVE_ALL
        )
        < 0
    ):
        raise OSError(ctypes.get_errno(), "move_pages")


def main(count: int) -> None:
    time.sleep(3)  # until the checker works
    process = checker()
    addresses = heap(process)
    (PARAMETERS / "victim").write_text(CHECKER_NAME)
    # Else it dies in the meantime, and holds the lock of a page table that we need next.
    os.kill(process, signal.SIGSTOP)
    time.sleep(0.2)
    for node in (1, 0):  # on the node where they are already, nothing moves
        (PARAMETERS / "arm").write_text(f"left_behind {count}")
        move(process, addresses, node)
        if struck("left_behind")[0]:
            break
    os.kill(process, signal.SIGCONT)
    times, first = struck("left_behind")
    print(
        "fault "
        + json.dumps(
            {
                "name": "left_behind",
                "struck": times,
                "first": first,
                "pid": os.getpid(),
                "judge": process,
            }
        ),
        flush=True,
    )
    signal.pause()


if __name__ == "__main__":
    main(int((sys.argv[1:] or ["32"])[0]))
