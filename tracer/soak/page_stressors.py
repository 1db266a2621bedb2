"""Stressors of pages: rmap walks, migration, swap, huge pages and KSM."""

from __future__ import annotations

import ctypes
import mmap
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from tracer.soak.calls import (
    HUGE,
    INT,
    MADV_COLLAPSE,
    MADV_DONTNEED,
    MADV_HUGEPAGE,
    MADV_MERGEABLE,
    MADV_PAGEOUT,
    MPOL_MF_MOVE_ALL,
    MREMAP_MAYMOVE,
    PAGE,
    POINTER,
    SIZE,
    SYS_MOVE_PAGES,
    Here,
    in_child,
    libc,
    map_anonymous,
    touch,
    wait_for,
)


def family(here: Here) -> Iterator[None]:
    """Share pages with children and grandchildren, which unmap, move and write parts of them."""
    size = max(64 * PAGE, min(here.memory // 8, 16 << 20) // PAGE * PAGE)

    def parts(area: int) -> None:
        at = here.random.randrange(1, size // PAGE - 1) * PAGE
        libc.munmap(area + at, PAGE)
        libc.mremap(area, at // 2 // PAGE * PAGE, size, MREMAP_MAYMOVE, None)
        touch(area + at + PAGE, size - at - PAGE, 2 * PAGE, 3)

    def child(area: int) -> None:
        grandchild = in_child(lambda: parts(area))
        here.random.random()
        parts(area)
        os.waitpid(grandchild, 0)

    while True:
        area = map_anonymous(size)
        touch(area, size)
        children = []
        for _ in range(3):
            here.random.random()
            children.append(in_child(lambda: child(area)))  # noqa: B023
        libc.mremap(area, size, size // 2, 0, None)
        wait_for(children)
        libc.munmap(area, size)
        yield


def compaction(here: Here) -> Iterator[None]:
    """Touch memory, free every other piece of it, and compact all memory (root)."""
    piece, most = 256 << 10, min(here.memory // 2, 16 << 20)
    while True:
        pieces = [mmap.mmap(-1, piece) for _ in range(max(2, most // piece))]
        for one in pieces:
            for offset in range(0, piece, PAGE):
                one[offset] = 1
        kept = pieces[::2]
        for one in pieces[1::2]:
            one.close()
        Path("/proc/sys/vm/compact_memory").write_text("1")
        for one in kept:
            one.close()
        yield
        time.sleep(0.05)


def between_nodes(here: Here) -> Iterator[None]:
    """Move pages from one memory node to another and back, while children map them (root)."""
    nodes = [int(one.name[4:]) for one in Path("/sys/devices/system/node").glob("node[0-9]*")]
    count = max(64, min(here.memory // 4 // PAGE, 512))
    area = map_anonymous(count * PAGE)
    touch(area, count * PAGE)
    addresses = (POINTER * count)(*(area + n * PAGE for n in range(count)))
    statuses = (INT * count)()
    while True:
        for node in nodes:
            children = [in_child(lambda: touch(area, count * PAGE, 3 * PAGE)) for _ in range(2)]
            wanted = (INT * count)(*[node] * count)
            failed = libc.syscall(
                SYS_MOVE_PAGES, 0, SIZE(count), addresses, wanted, statuses, MPOL_MF_MOVE_ALL
            )
            wait_for(children)
            if failed < 0 or node not in [*statuses]:
                raise OSError(ctypes.get_errno(), f"no page moved to node {node}")
        yield


def page_out(here: Here) -> Iterator[None]:
    """Page memory out and touch it again, with a child that shares it."""
    size = max(64 * PAGE, here.memory // 2 // PAGE * PAGE)
    area = map_anonymous(size)
    while True:
        touch(area, size, value=here.random.randrange(256))
        child = in_child(lambda: touch(area, size, 2 * PAGE, 3))
        if libc.madvise(area, size, MADV_PAGEOUT):
            wait_for([child])
            raise OSError(ctypes.get_errno(), "MADV_PAGEOUT")
        wait_for([child])
        yield


def huge_area(count: int) -> int:
    """Map aligned anonymous memory for huge pages, touch each, and return the address."""
    found = map_anonymous((count + 1) * HUGE)
    first = (found + HUGE - 1) // HUGE * HUGE
    if first > found:
        libc.munmap(found, first - found)
    libc.munmap(first + count * HUGE, found + HUGE - first)
    libc.madvise(first, count * HUGE, MADV_HUGEPAGE)
    touch(first, count * HUGE, HUGE)
    return first


def _break_up(here: Here, first: int) -> None:
    """Unmap, move, discard and write parts of four huge pages, in a child that shares them."""
    at = here.random.randrange(1, 511) * PAGE
    libc.munmap(first + at, PAGE)
    libc.mremap(first + HUGE, HUGE, HUGE + PAGE, MREMAP_MAYMOVE, None)
    libc.madvise(first + 2 * HUGE + at, HUGE - at, MADV_DONTNEED)
    touch(first + 3 * HUGE + at, PAGE, value=2)


def huge_pages(here: Here) -> Iterator[None]:
    """Share huge pages with children that break them up; shrink some and collapse the rest."""
    while True:
        first = huge_area(4)
        children = []
        for _ in range(3):
            here.random.random()
            children.append(in_child(lambda: _break_up(here, first)))  # noqa: B023
        libc.mremap(first, HUGE, HUGE // 2, 0, None)
        wait_for(children)
        libc.madvise(first + HUGE, 2 * HUGE, MADV_COLLAPSE)
        libc.munmap(first, 4 * HUGE)
        yield


def split_by_debugfs(here: Here) -> Iterator[None]:
    """Split huge pages by debugfs while a child breaks them up (root)."""
    control = Path("/sys/kernel/debug/split_huge_pages")
    while True:
        first = huge_area(4)
        child = in_child(lambda: _break_up(here, first))  # noqa: B023
        with suppress(OSError):  # EINVAL: only a race was lost
            control.write_text(f"{os.getpid()},{first:#x},{first + 4 * HUGE:#x}")
        wait_for([child])
        libc.munmap(first, 4 * HUGE)
        here.random.random()
        yield


def same_pages(here: Here) -> Iterator[None]:
    """Let ksmd merge same pages, and write to half of them again."""
    size = max(64 * PAGE, min(here.memory // 2, 4 << 20) // PAGE * PAGE)
    area = map_anonymous(size)
    libc.madvise(area, size, MADV_MERGEABLE)
    while True:
        touch(area, size)
        child = in_child(lambda: touch(area, size, 4 * PAGE, 2))
        time.sleep(0.5)
        touch(area, size, 2 * PAGE, 3)
        wait_for([child])
        yield
