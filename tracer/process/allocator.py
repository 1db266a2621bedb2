"""How the C library gives memory back to the kernel."""

from __future__ import annotations

import contextlib
import ctypes

_M_MMAP_THRESHOLD = -3  # malloc.h of glibc
MAPPED_BYTES = 128 << 10
"""Blocks of this size and more have a mapping of their own."""


def return_large_blocks() -> None:
    """Give each large block back to the kernel as soon as it is freed.

    glibc does so at first. After the first large block is freed it raises its limit to the size of
    that block, up to 32 MiB, and takes the next ones from the heap, where what is allocated above
    them keeps them from being returned: each new reading of the kernel's symbols would add some
    6 MB. Children inherit the setting. Other C libraries have no mallopt(), nor such a limit.
    """
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, MAPPED_BYTES)
