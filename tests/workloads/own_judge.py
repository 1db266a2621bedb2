"""The command of an rmapd exec in a guest with two nodes and rmapd_faults: moves pages of the judge's own heap, and leaves entries behind.

usage: own_judge.py [N]     (root; prints one JSON line: name, how often it struck, when first, pid, the judge's pid)

The judge touches its heap all the time: the kernel's BUG kills it. Then this sleeps on.
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
from tracer.supervision.supervisor import CHECKER_NAME

SYS_MOVE_PAGES, MOVE_ALL = 279, 4
MOST_PAGES = 512


def judge() -> int:
    """Our supervisor's other child."""
    supervisor = os.getppid()
    children = map(int, Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split())
    return next(
        child
        for child in children
        if Path(f"/proc/{child}/comm").read_text().strip() == CHECKER_NAME
    )


def heap(process: int) -> list[int]:
    """Addresses of the pages of its heap, the newest first."""
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
    time.sleep(3)  # until the judge is at work
    process = judge()
    addresses = heap(process)
    (PARAMETERS / "victim").write_text(CHECKER_NAME)
    os.kill(
        process, signal.SIGSTOP
    )  # or it dies in the midst of this, with a page table locked that we come to next
    time.sleep(0.2)
    for node in (1, 0):  # where they are already nothing moves
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
