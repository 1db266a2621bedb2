"""A workload: mseal() of a range whose first VMA is merged with the second one.

usage: seal_merge.py [ROUNDS]     (prints how many ranges were sealed)

Of four parts the second and the fourth are sealed; then the first three are. CVE-2026-23416: after
the merge mseal_apply() went on from where the first part had ended, and asked vma_modify() for a
range that began before the third part did. The mm is broken after that, and the process keeps what
it has until it exits: a sealed VMA cannot be unmapped.
"""

from __future__ import annotations

import ctypes
import sys

from tests.workloads.faults import PAGE, area, libc, must, touch

SYS_MSEAL, PART = 462, 4 * PAGE


def seal(at: int, size: int) -> None:
    must(libc.syscall(SYS_MSEAL, ctypes.c_void_p(at), ctypes.c_size_t(size), 0) is None, "mseal")


def main(rounds: int) -> None:
    for _ in range(rounds):
        first = area(size=4 * PART)
        touch(first, 4 * PART)
        seal(first + PART, PART)
        seal(first + 3 * PART, PART)
        seal(first, 3 * PART)
    print(f"sealed {rounds}", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
