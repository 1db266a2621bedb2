"""A process with many VMAs of files and anonymous memory, for the audit: it maps, forks and waits.

usage: many_vmas.py VMAS FORKS
"""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
import sys
import tempfile

PAGE = mmap.PAGESIZE
_READ_WRITE, _READ, _PRIVATE_ANONYMOUS = 3, 1, 0x4022  # with MAP_NORESERVE

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


def main() -> None:
    """Map pairs of touched pages of which the first is read-only, with gaps between pairs."""
    vmas, forks = map(int, sys.argv[1:])
    base = libc.mmap(None, 4 * PAGE * vmas, _READ_WRITE, _PRIVATE_ANONYMOUS, -1, 0)
    for n in range(vmas // 2):
        at = base + 4 * PAGE * n
        ctypes.memset(at, 1, 1)
        ctypes.memset(at + PAGE, 1, 1)
        libc.mprotect(at, PAGE, _READ)
        libc.munmap(at + 2 * PAGE, 2 * PAGE)
    with tempfile.TemporaryFile() as file:
        file.truncate(16 * PAGE * 12)
        views = [mmap.mmap(file.fileno(), 2 * PAGE, offset=16 * PAGE * n) for n in range(12)]
    unfaulted = libc.mmap(None, PAGE, _READ_WRITE, _PRIVATE_ANONYMOUS, -1, 0)
    for _ in range(forks):
        if os.fork() == 0:
            signal.pause()
    print(hex(base), hex(unfaulted), len(views), flush=True)
    signal.pause()


if __name__ == "__main__":
    main()
