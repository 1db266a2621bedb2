"""System calls that the C library has no function for, on the machine that we run on."""

from __future__ import annotations

import ctypes
import os

_NUMBERS = {
    # name: (x86-64, the generic table that arm64 has: include/uapi/asm-generic/unistd.h)
    "bpf": (321, 280),
    "clone": (56, 220),
    "mbind": (237, 235),
    "move_pages": (279, 239),
    "perf_event_open": (298, 241),
}
_GENERIC = os.uname().machine != "x86_64"


def number(name: str) -> int:
    """Return the number of a system call for syscall(2)."""
    return _NUMBERS[name][_GENERIC]


def clone_arguments(flags: int, child_tid: ctypes.c_void_p) -> tuple[object, ...]:
    """Return the arguments of clone(2) for a child that goes on as a fork does.

    The last two are the child's thread id and its TLS, on arm64 the other way round
    (CONFIG_CLONE_BACKWARDS).
    """
    last = (None, child_tid) if _GENERIC else (child_tid, None)
    return ctypes.c_ulong(flags), None, None, *last
