"""A workload: all at once for a while, so that rmap walks, VMA changes, forks, zaps and migrations meet in every order they can.

usage: python -m tests.workloads.soak [SECONDS]     (root, 3 GiB, stress-ng, two memory nodes; prints one JSON line)

stress-ng changes VMAs. Beside it: compaction of fragmented memory, forks and zaps of what is compacted, pages moved between nodes, same
pages merged, and huge pages split while their owner forks and its children move and unmap parts. A part that got nothing done shows 0.
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

# One instance each, small: two emulated CPUs and 3 GiB have to carry it all. Debian 12's stress-ng has no ksm stressor: same_pages().
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
MOVED = 512  # pages between the nodes at a time: the more, the less of the time is Python's
DATA_LIMIT = 256 << 20  # what brk may grow to
VMSTAT = "pgmigrate_success pgmigrate_fail compact_success thp_fault_alloc thp_split_page thp_split_pmd thp_migration_success oom_kill".split()
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

shared = memoryview(mmap.mmap(-1, PAGE)).cast(
    "Q"
)  # a count per part; the last two: the pid and the address of huge pages to split


def huge_area(pages: int) -> int:
    """Anonymous huge pages, aligned, each touched at one byte."""
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
    """Every other MiB of what was touched, and then all memory compacted."""
    kept = [touched(1 << 20) for _ in range(64)][::2]
    Path("/proc/sys/vm/compact_memory").write_text("1")
    del kept


def fork_and_zap(mine: mmap.mmap) -> None:
    """Children share our pages, write to some and exit, in the middle of a migration if it happens so."""
    child = os.fork()
    if not child:
        for offset in range(0, len(mine), 4 * PAGE):
            mine[offset] = 2
        touched(2 << 20)
        os._exit(0)
    os.waitpid(child, 0)


def relatives() -> None:
    """Huge pages shared by children that move one, unmap or discard a part of others, while the splitter splits them."""
    pages = 4
    first = huge_area(pages)
    shared[-2], shared[-1] = os.getpid(), first
    children = []
    for _ in range(3):
        if not (child := os.fork()):
            some = random.randrange(1, 511) * PAGE
            libc.munmap(first + some, PAGE)
            libc.mremap(first + HUGE, HUGE, HUGE + PAGE, MREMAP_MAYMOVE)
            libc.madvise(first + 2 * HUGE + some, HUGE - some, mmap.MADV_DONTNEED)
            ctypes.memset(first + 3 * HUGE + some, 2, 1)
            os._exit(0)
        children.append(child)
    libc.mremap(first, HUGE, HUGE // 2, 0)
    for child in children:
        os.waitpid(child, 0)
    libc.madvise(first + HUGE, 2 * HUGE, MADV_COLLAPSE)
    libc.munmap(first, pages * HUGE)


def splitter() -> None:
    """debugfs splits the huge pages of the relatives; EINVAL is a race that was lost, no more."""
    SPLIT.write_text(f"{shared[-2]},{shared[-1]:#x},{shared[-1] + 4 * HUGE:#x}")


def between_nodes(first: int, node: list[int]) -> None:
    """Small pages and a huge one go to the other node."""
    node[0] ^= 1
    said = move([first + page * PAGE for page in range(MOVED)] + [first + HUGE], node[0])
    if not said[node[0]]:
        raise OSError(f"no page moved: {dict(said)}")


def same_pages() -> None:
    """Pages that are the same, merged by ksmd, and half of them written to again."""
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
    # Without CAP_SYS_ADMIN, or madvise would try MADV_HWPOISON on its own pages and die of it.
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
