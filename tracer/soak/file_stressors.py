"""Stressors of files and memory pressure: a tmpfs, shared mappings, a compiler."""

from __future__ import annotations

import ctypes
import mmap
import os
import shutil
import subprocess
from collections.abc import Iterator

from tracer.soak.calls import (
    HUGE,
    MADV_DONTNEED,
    PAGE,
    PUNCH,
    Here,
    in_child,
    libc,
    map_anonymous,
    wait_for,
)


def shared_file(here: Here) -> Iterator[None]:
    """Map one file in several processes, and truncate it and let it grow meanwhile."""
    size = max(64 * PAGE, min(here.files, 16 << 20) // PAGE * PAGE)
    path = here.folder / f"shared-{os.getpid()}"

    def read_on(descriptor: int) -> None:
        for _ in range(20):
            with mmap.mmap(descriptor, size) as mapped:
                mapped.madvise(mmap.MADV_RANDOM)
                for _ in range(32):
                    # Beyond the end of a file that is truncated meanwhile there is SIGBUS.
                    mapped[here.random.randrange(size // 2)] = 1

    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            os.ftruncate(descriptor, size)
            children = []
            for _ in range(3):
                here.random.random()
                children.append(in_child(lambda: read_on(descriptor)))  # noqa: B023
            for _ in range(20):
                os.ftruncate(descriptor, size // 2)
                os.ftruncate(descriptor, size)
                libc.fallocate(descriptor, PUNCH, 0, size // 4)
            wait_for(children)
        finally:
            os.close(descriptor)
            path.unlink(missing_ok=True)
        yield


def pressure(here: Here) -> Iterator[None]:
    """Touch memory at random, give a part of it back, and fork over it."""
    size = max(64 * PAGE, here.memory // PAGE * PAGE)
    area = map_anonymous(size)
    while True:
        for _ in range(size // PAGE // 4):
            ctypes.memset(area + here.random.randrange(size // PAGE) * PAGE, 1, 1)
        part = here.random.randrange(size // PAGE) * PAGE
        libc.madvise(area + part, min(size // 4, size - part), MADV_DONTNEED)
        wait_for([in_child(lambda: None)])
        yield


def tmpfs_files(here: Here) -> Iterator[None]:
    """Write, map, punch and truncate files in the tmpfs."""
    size = max(HUGE, min(here.files, 32 << 20) // HUGE * HUGE)
    path = here.folder / f"file-{os.getpid()}"
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            os.ftruncate(descriptor, size)
            with mmap.mmap(descriptor, size) as mapped:
                for offset in range(0, size, 8 * PAGE):
                    mapped[offset] = 1
                hole = here.random.randrange(size // PAGE) * PAGE
                libc.fallocate(descriptor, PUNCH, hole, PAGE)
                mapped[hole] = 2
            os.ftruncate(descriptor, here.random.randrange(size))
        finally:
            os.close(descriptor)
            path.unlink(missing_ok=True)
        yield


_UNIT = """\
#include <stdint.h>
#include <string.h>
struct node {{ struct node *next; uint64_t key[{keys}]; char name[{name}]; }};
static uint64_t mix(uint64_t a, uint64_t b) {{ return (a ^ (b << {shift})) * {factor}u; }}
{functions}
uint64_t unit{number}(struct node *n) {{
  uint64_t r = 0;
  for (; n; n = n->next) {{ {calls} }}
  return r;
}}
"""
_FUNCTION = (
    "static uint64_t f{n}(struct node *x, uint64_t r) {{ for (int i = 0; i < {keys}; i++)"
    " r = mix(r, x->key[i] + {n}); memset(x->name, (int)r, sizeof(x->name)); return r; }}"
)


def unit_text(number: int, here: Here) -> str:
    """Return a C file that takes a compiler a moment."""
    keys, count = here.random.randrange(8, 64), 24
    return _UNIT.format(
        number=number,
        keys=keys,
        name=here.random.randrange(16, 256),
        shift=here.random.randrange(1, 31),
        factor=here.random.randrange(3, 1 << 30) | 1,
        functions="\n".join(_FUNCTION.format(n=n, keys=keys) for n in range(count)),
        calls=" ".join(f"r = f{n}(n, r);" for n in range(count)),
    )


def compile_units(here: Here) -> Iterator[None]:
    """Generate C files in the tmpfs and compile them, a compiler for each CPU; then link them."""
    cc, count = shutil.which("cc") or "cc", os.cpu_count() or 1
    while True:
        units = [here.folder / f"unit{number}.c" for number in range(count)]
        for number, unit in enumerate(units):
            unit.write_text(unit_text(number, here))
        running = [
            subprocess.Popen(
                [cc, "-O1", "-pipe", "-c", "-o", unit.with_suffix(".o"), unit], cwd=here.folder
            )
            for unit in units
        ]
        codes = [one.wait() for one in running]
        objects = [unit.with_suffix(".o") for unit in units]
        if any(codes):
            raise OSError(0, f"the compiler ended with {next(filter(None, codes))}")
        linked = here.folder / "units.o"
        subprocess.run([cc, "-r", "-nostdlib", "-o", linked, *objects], check=False)
        for one in (*units, *objects, linked):
            one.unlink(missing_ok=True)
        yield
