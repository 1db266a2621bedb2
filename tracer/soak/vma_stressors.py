"""Stressors of VMAs: storms of changes, brk, fork and exec."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator

from tracer.soak.calls import (
    M_TOP_PAD,
    M_TRIM_THRESHOLD,
    MADV_DONTNEED,
    MADV_HUGEPAGE,
    MADV_NOHUGEPAGE,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    PAGE,
    PROT_NONE,
    PROT_READ,
    PROT_RW,
    Here,
    in_child,
    libc,
    map_anonymous,
    map_file,
    touch,
    wait_for,
)


def vma_storm(here: Here) -> Iterator[None]:
    """Change VMAs at random places of one area: make, split, merge, move and remove them."""
    pages = max(64, min(here.memory // 2, 64 << 20) // PAGE)
    area = map_anonymous(pages * PAGE, PROT_NONE)
    descriptor = os.open(here.folder / f"storm-{os.getpid()}", os.O_RDWR | os.O_CREAT, 0o600)
    file_pages = max(33, min(pages, here.files // PAGE))
    os.ftruncate(descriptor, file_pages * PAGE)

    def place() -> tuple[int, int]:
        start = here.random.randrange(pages)
        count = min(here.random.choice((1, 2, 3, 8, 32)), pages - start)
        return area + start * PAGE, count * PAGE

    def make() -> None:
        at, size = place()
        map_anonymous(size, at=at)
        touch(at, min(size, 4 * PAGE))

    def make_of_file() -> None:
        at, size = place()
        offset = here.random.randrange(file_pages - size // PAGE + 1) * PAGE
        map_file(descriptor, at, size, offset, shared=here.random.random() < 0.5)
        touch(at, min(size, 2 * PAGE))

    def move() -> None:
        (old, size), (new, _) = place(), place()
        new = min(new, area + pages * PAGE - size)
        if abs(new - old) >= size:
            libc.mremap(old, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, new)

    def advise() -> None:
        at, size = place()
        advice = here.random.choice((MADV_DONTNEED, MADV_HUGEPAGE, MADV_NOHUGEPAGE))
        libc.madvise(at, size, advice)

    operations = (
        make,
        make,
        make_of_file,
        lambda: libc.munmap(*place()),
        lambda: libc.mprotect(*place(), PROT_READ),
        lambda: libc.mprotect(*place(), PROT_RW),
        move,
        advise,
    )
    try:
        while True:
            for _ in range(200):
                here.random.choice(operations)()
            yield
    finally:
        os.close(descriptor)
        libc.munmap(area, pages * PAGE)


def brk_storm(here: Here) -> Iterator[None]:
    """Grow and shrink the heap in a child, whose malloc() has all it needs before."""

    def work() -> None:
        libc.mallopt(M_TRIM_THRESHOLD, 1 << 30)
        libc.mallopt(M_TOP_PAD, 8 << 20)
        for _ in range(64):  # until the padded top of the heap is there
            libc.malloc(96 << 10)
        base = int(libc.sbrk(0))
        base = (base + PAGE - 1) // PAGE * PAGE
        for _ in range(100):
            size = here.random.randrange(1, 64) * PAGE
            if libc.brk(base + size) == 0:
                touch(base, size)
                libc.mprotect(base, PAGE, PROT_READ)
                libc.mprotect(base, PAGE, PROT_RW)
                libc.brk(base)

    while True:
        wait_for([in_child(work)])
        yield


def fork_and_exec(here: Here) -> Iterator[None]:
    """Fork children that write, unmap and protect parts of what they got; then exec."""
    size = max(64 * PAGE, min(here.memory // 8, 8 << 20) // PAGE * PAGE)
    area = map_anonymous(size)
    touch(area, size)
    size -= PAGE

    def work() -> None:
        at = area + here.random.randrange(size // PAGE) * PAGE
        libc.munmap(at, PAGE)
        libc.mprotect(area, at - area, PROT_READ)
        touch(at + PAGE, area + size - at, 4 * PAGE, 2)

    while True:
        here.random.random()  # else every child draws the same
        wait_for([in_child(work) for _ in range(3)])
        subprocess.run(["/bin/true"], check=False)
        os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0)
        yield
