"""A workload: mremap() moves memory beside memory that has the same userfaultfd.

usage: uffd_beside.py [ROUNDS]     (root; prints how often the neighbour lost its userfaultfd)

The two are merged, and mremap() ends the userfaultfd of what it moves. Up to 7.3.3 it ended that of
the neighbour, too, which never moved.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import re
import struct
import sys
from pathlib import Path

from tests.workloads.beside import move
from tests.workloads.faults import AREA, area, libc, must, touch

SYS_USERFAULTFD = {"x86_64": 323, "aarch64": 282}[os.uname().machine]
UFFD_USER_MODE_ONLY, UFFD_API = 1, 0xAA
UFFDIO_API, UFFDIO_REGISTER, MISSING = 0xC018AA3F, 0xC020AA00, 1


def userfaultfd() -> int:
    """Return a userfaultfd without UFFD_FEATURE_EVENT_REMAP."""
    fd = libc.syscall(SYS_USERFAULTFD, os.O_CLOEXEC | os.O_NONBLOCK | UFFD_USER_MODE_ONLY)
    must(fd is not None and 0 <= fd < 1 << 31, "userfaultfd")
    fcntl.ioctl(fd, UFFDIO_API, bytearray(struct.pack("<3Q", UFFD_API, 0, 0)), True)
    return int(fd)


def register(fd: int, at: int) -> None:
    fcntl.ioctl(fd, UFFDIO_REGISTER, bytearray(struct.pack("<4Q", at, AREA, MISSING, 0)), True)


def is_registered(at: int) -> bool:
    """Return whether the VMA that begins there has VM_UFFD_MISSING."""
    smaps = Path("/proc/self/smaps").read_text()
    flags = re.search(rf"^{at:x}-.*?^VmFlags:(.*?)$", smaps, re.M | re.S)
    return " um" in (flags[1] if flags else "")


def main(rounds: int) -> None:
    fd, lost = userfaultfd(), 0
    for _ in range(rounds):
        home, away = area(size=2 * AREA), area()
        touch(home, 2 * AREA)
        move(home + AREA, away)
        register(fd, home)
        register(fd, away)
        move(away, home + AREA)
        lost += not is_registered(home)
        libc.munmap(ctypes.c_void_p(home), ctypes.c_size_t(2 * AREA))
    print(f"moved {rounds}, lost {lost}", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
