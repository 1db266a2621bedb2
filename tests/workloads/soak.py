"""A workload: rmap walks, VMA changes, forks, zaps and migrations at once, in every order.

usage: python -m tests.workloads.soak [SECONDS]     (prints one JSON line)

It needs root, 3 GiB, stress-ng and two memory nodes. stress-ng changes VMAs. Beside it fragmented
memory is compacted, forked and zapped, pages are moved between nodes, same pages are merged, and
huge pages are split while their owner forks and its children move and unmap parts. A part that
achieves nothing shows 0.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import mmap
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.workloads.migrate import PAGE, touched
from tests.workloads.numa import HUGE, move

# One small instance each, for two emulated CPUs and 3 GiB.
# Debian 12's stress-ng has no ksm stressor; same_pages() replaces it.
STRESSORS = {
    "rmap": "",
    "mremap": "16M",
    "pagemove": "4M",
    "brk": "",
    "munmap": "",
    "madvise": "",
    "mmapfork": "",
    "numa": "",
}
MOVED = 512  # pages that move between the nodes at a time; more of them need less time in Python
DATA_LIMIT = 256 << 20  # bytes; limits the heap of the brk stressor
VMSTAT = """pgmigrate_success pgmigrate_fail compact_success thp_fault_alloc thp_split_page
thp_split_pmd thp_migration_success oom_kill""".split()
KSM = Path("/sys/kernel/mm/ksm")
SPLIT = Path("/sys/kernel/debug/split_huge_pages")
MREMAP_MAYMOVE, MADV_COLLAPSE = 1, 25

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = libc.mremap.restype = ctypes.c_void_p
libc.mmap.argtypes = [
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_long,
]
libc.mremap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]

# A count per part; the last two: the pid and the address of huge pages to split.
shared = memoryview(mmap.mmap(-1, PAGE)).cast("Q")


def huge_area(pages: int) -> int:
    """Map aligned anonymous huge pages, touch a byte of each, and return the address."""
    got = libc.mmap(
        None,
        (pages + 1) * HUGE,
        mmap.PROT_READ | mmap.PROT_WRITE,
        mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS,
        -1,
        0,
    )
    first = int((got + HUGE - 1) // HUGE * HUGE)
    libc.munmap(got, first - got)
    libc.munmap(first + pages * HUGE, got + HUGE - first)
    libc.madvise(first, pages * HUGE, mmap.MADV_HUGEPAGE)
    for page in range(pages):
        ctypes.memset(first + page * HUGE, 1, 1)
    return first


def compaction() -> None:
    """Touch memory, free every other MiB of it, and compact all memory."""
    kept = [touched(1 << 20) for _ in range(64)][::2]
    Path("/proc/sys/vm/compact_memory").write_text("1")
    del kept


def fork_and_zap(mine: mmap.mmap) -> None:
    """Fork a child that shares our pages, writes to some and exits, possibly during a migration."""
    child = os.fork()
    if not child:
        for offset in range(0, len(mine), 4 * PAGE):
            mine[offset] = 2
        touched(2 << 20)
        os._exit(0)
    os.waitpid(child, 0)


def relatives() -> None:
    """Share huge pages with children while splitter() splits them.

    Each child moves one, and unmaps or discards a part of others.
    """
    pages = 4
    first = huge_area(pages)
    shared[-2], shared[-1] = os.getpid(), first
    children = []
    for _ in range(3):
        if not (child := os.fork()):
            offset = random.randrange(1, 511) * PAGE
            libc.munmap(first + offset, PAGE)
            libc.mremap(first + HUGE, HUGE, HUGE + PAGE, MREMAP_MAYMOVE)
            libc.madvise(first + 2 * HUGE + offset, HUGE - offset, mmap.MADV_DONTNEED)
            ctypes.memset(first + 3 * HUGE + offset, 2, 1)
            os._exit(0)
        children.append(child)
    libc.mremap(first, HUGE, HUGE // 2, 0)
    for child in children:
        os.waitpid(child, 0)
    libc.madvise(first + HUGE, 2 * HUGE, MADV_COLLAPSE)
    libc.munmap(first, pages * HUGE)


def splitter() -> None:
    """Split the huge pages of relatives() by debugfs; EINVAL means only that a race was lost."""
    SPLIT.write_text(f"{shared[-2]},{shared[-1]:#x},{shared[-1] + 4 * HUGE:#x}")


def between_nodes(first: int, node: list[int]) -> None:
    """Move small pages and a huge one to the other node."""
    node[0] ^= 1
    statuses = move([first + page * PAGE for page in range(MOVED)] + [first + HUGE], node[0])
    if not statuses[node[0]]:
        raise OSError(f"no page moved: {dict(statuses)}")


def same_pages() -> None:
    """Let ksmd merge same pages, and write to half of them again."""
    block = touched(1 << 20)
    block.madvise(mmap.MADV_MERGEABLE)
    time.sleep(1)
    for offset in range(0, len(block), 2 * PAGE):
        block[offset] = 3


def parts() -> dict[str, Callable[[], None]]:
    mine, node, first = touched(16 << 20), [0], huge_area(2)
    libc.madvise(first, HUGE, mmap.MADV_NOHUGEPAGE)
    libc.madvise(first, HUGE, mmap.MADV_DONTNEED)
    for page in range(MOVED):
        ctypes.memset(first + page * PAGE, 1, 1)
    return {
        "compaction": compaction,
        "fork_and_zap": lambda: fork_and_zap(mine),
        "relatives": relatives,
        "splitter": splitter,
        "between_nodes": lambda: between_nodes(first, node),
        "same_pages": same_pages,
    }


def repeat(slot: int, part: Callable[[], None], until: float) -> None:
    while time.monotonic() < until:
        try:
            part()
            shared[slot] += 1
        except OSError:
            time.sleep(0.2)
    os._exit(0)


def stress(seconds: int, folder: str) -> subprocess.Popen[bytes]:
    # With CAP_SYS_ADMIN, madvise would try MADV_HWPOISON on its own pages and die of it.
    command = [
        "setpriv",
        "--bounding-set=-sys_admin",
        "prlimit",
        f"--data={DATA_LIMIT}",
        "stress-ng",
        "--quiet",
        "--oomable",
        "--temp-path",
        folder,
        "--yaml",
        f"{folder}/yaml",
    ]
    command += ["--timeout", f"{seconds}s", "--metrics"]
    for name, size in STRESSORS.items():
        command += [f"--{name}", "1"] + ([f"--{name}-bytes", size] if size else [])
    return subprocess.Popen(
        command, start_new_session=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )


def counters() -> dict[str, int]:
    found = dict(line.split() for line in Path("/proc/vmstat").read_text().splitlines())
    return {name: int(found[name]) for name in VMSTAT if name in found}


def main(seconds: int) -> None:
    if not SPLIT.exists():
        subprocess.run(
            ["mount", "-t", "debugfs", "debugfs", str(SPLIT.parent)],
            check=False,
            stderr=subprocess.DEVNULL,
        )
    with contextlib.suppress(OSError):
        (KSM / "pages_to_scan").write_text("1000")
        (KSM / "run").write_text("1")
    before, began, names = counters(), time.monotonic(), []
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        stressing, children = stress(seconds, folder), []
        try:
            for slot, (name, part) in enumerate(parts().items()):
                names.append(name)
                if not (child := os.fork()):
                    repeat(slot, part, began + seconds)
                children.append(child)
            code: int | None = stressing.wait(seconds + 120)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            if stressing.poll() is None:
                os.killpg(stressing.pid, signal.SIGKILL)
            for child in children:
                os.kill(child, signal.SIGTERM)
                os.waitpid(child, 0)
            with contextlib.suppress(OSError):
                (KSM / "run").write_text("2")
        text = Path(folder, "yaml").read_text() if Path(folder, "yaml").exists() else ""
    done = {
        "seconds": round(time.monotonic() - began, 1),
        "stress_ng_exit": code,
        "stress_ng": {
            name: int(count)
            for name, count in re.findall(r"stressor: (\S+)\n\s+bogo-ops: (\d+)", text)
        },
        "parts": {name: shared[slot] for slot, name in enumerate(names)},
        "vmstat": {name: count - before[name] for name, count in counters().items()},
    }
    print(json.dumps(done), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 60)
