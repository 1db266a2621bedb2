"""System calls on memory, and children: what the stressors are made of."""

from __future__ import annotations

import ctypes
import mmap
import os
import random
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tracer.machine.system_calls import number

PAGE = mmap.PAGESIZE
HUGE = 2 << 20
PROT_RW, PROT_READ, PROT_NONE = mmap.PROT_READ | mmap.PROT_WRITE, mmap.PROT_READ, 0
MAP_FIXED, MAP_NORESERVE = 0x10, 0x4000
MREMAP_MAYMOVE, MREMAP_FIXED = 1, 2
MADV_DONTNEED, MADV_MERGEABLE, MADV_HUGEPAGE, MADV_NOHUGEPAGE = 4, 12, 14, 15
MADV_PAGEOUT, MADV_COLLAPSE = 21, 25
PUNCH = 1 | 2  # FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE
SYS_MOVE_PAGES = number("move_pages")
MPOL_MF_MOVE_ALL = 4
M_TRIM_THRESHOLD, M_TOP_PAD = -1, -2

libc = ctypes.CDLL(None, use_errno=True)
POINTER, SIZE, INT = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
libc.mmap.restype = libc.mremap.restype = libc.sbrk.restype = POINTER
libc.mmap.argtypes = [POINTER, SIZE, INT, INT, INT, ctypes.c_long]
libc.mremap.argtypes = [POINTER, SIZE, SIZE, INT, POINTER]
libc.munmap.argtypes = [POINTER, SIZE]
libc.mprotect.argtypes = libc.madvise.argtypes = [POINTER, SIZE, INT]
libc.sbrk.argtypes = [ctypes.c_ssize_t]
libc.brk.argtypes = [POINTER]
libc.fallocate.argtypes = [INT, INT, ctypes.c_long, ctypes.c_long]
libc.malloc.restype = POINTER
libc.malloc.argtypes = [SIZE]


@dataclass(frozen=True)
class Here:
    """Where a worker works: its bytes of memory, and its bytes of files in the tmpfs `folder`."""

    random: random.Random
    memory: int
    files: int
    folder: Path


def map_anonymous(size: int, protection: int = PROT_RW, at: int | None = None) -> int:
    """Map anonymous private memory and return its address. Raises OSError. at: a fixed address."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE | (MAP_FIXED if at else 0)
    found = libc.mmap(at, size, protection, flags, -1, 0)
    if found in (None, ctypes.c_void_p(-1).value):
        raise OSError(ctypes.get_errno(), "mmap")
    return int(found)


def map_file(descriptor: int, at: int, size: int, offset: int, *, shared: bool) -> None:
    """Map a part of a file at a fixed address. Raises OSError."""
    flags = (mmap.MAP_SHARED if shared else mmap.MAP_PRIVATE) | MAP_FIXED
    if libc.mmap(at, size, PROT_RW, flags, descriptor, offset) != at:
        raise OSError(ctypes.get_errno(), "mmap of a file")


def touch(first: int, size: int, step: int = PAGE, value: int = 1) -> None:
    """Write a byte of each page."""
    for address in range(first, first + size, step):
        ctypes.memset(address, value, 1)


def in_child(work: Callable[[], None]) -> int:
    """Run work in a forked child, which exits then; return its pid."""
    child = os.fork()
    if not child:
        with suppress(BaseException):
            work()
        os._exit(0)
    return child


def wait_for(children: list[int]) -> None:
    """Wait for these children. Raises OSError where a signal killed one, and names it."""
    killed = 0
    for child in children:
        _, status = os.waitpid(child, 0)
        killed = killed or (os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0)
    if killed:
        raise OSError(0, f"a child was killed by {signal.Signals(killed).name}")
