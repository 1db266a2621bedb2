"""Compare what rmapd reads in page tables with pagemap, and entries with the folios of the walks.

Runs in a guest with two memory nodes.

usage: decoded.py OUT.json

Pages: of a process of our own, small and huge, and with MTE tags where the CPU has them; all page
frames as /proc/PID/pagemap has them. Entries: pages go to and fro between the nodes, and each row
of the ledger has the folio that the first walk visited and the entry that it left there.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import random
import signal
import struct
import sys
from collections import Counter
from pathlib import Path

from tests.workloads.numa import BALANCING, address, move
from tracer.config import Config
from tracer.daemon.probes import running_kernel
from tracer.daemon.session import Session, open_session
from tracer.memory.page_tables import Oracle

PAGE = mmap.PAGESIZE
SMALL, HUGE_PAGES, ROUNDS = 1000, 8, 20
PMD_SIZE = Path("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size")
HWCAP2_MTE, AT_HWCAP2, PROT_MTE = 1 << 18, 26, 0x20
_PFN, _PRESENT = (1 << 55) - 1, 1 << 63


def has_mte() -> bool:
    libc = ctypes.CDLL(None)
    libc.getauxval.restype = ctypes.c_ulong
    return os.uname().machine == "aarch64" and bool(libc.getauxval(AT_HWCAP2) & HWCAP2_MTE)


def mapped(size: int, protection: int = 0, advice: int | None = None) -> mmap.mmap:
    block = mmap.mmap(
        -1,
        size,
        flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS,
        prot=mmap.PROT_READ | mmap.PROT_WRITE | protection,
    )
    if advice is not None:
        block.madvise(advice)
    for at in range(0, size, PAGE):
        block[at] = 1
    return block


def pagemap(pid: int, at: int) -> int:
    with open(f"/proc/{pid}/pagemap", "rb", buffering=0) as file:
        (found,) = struct.unpack("<Q", os.pread(file.fileno(), 8, at // PAGE * 8))
    return int(found)


def compare(oracle: Oracle, pid: int, blocks: dict[str, mmap.mmap]) -> dict[str, dict[str, int]]:
    """Return, for each block, how many pages agree, disagree, and are part of a huge page."""
    mm = next(one for one in oracle.mms() if one.tgid == pid)
    out = {}
    for name, block in blocks.items():
        start = address(block)
        places = [start + n * PAGE for n in range(len(block) // PAGE)]
        picked = random.Random(23).sample(places, min(SMALL, len(places)))
        tally = Counter[str]()
        for at, found in zip(picked, oracle.ask([(mm, at) for at in picked]), strict=True):
            known = pagemap(pid, at)
            same = found.found == "FOUND_PRESENT" and found.present_pfn == known & _PFN
            tally["agree" if same and known & _PRESENT else "disagree"] += 1
            tally["huge"] += found.level > 1
        out[name] = dict(tally)
    return out


def follow(session: Session, blocks: dict[str, mmap.mmap]) -> dict[str, int]:
    """Move the pages in a child, and compare entries of the ledger with their folios."""
    params = session.probes.tables.params.get()
    known, tally = session.probes.tables.params.page_format(), Counter[str]()
    mover = os.fork()
    if not mover:
        for n in range(ROUNDS):
            for block in blocks.values():
                move([address(block) + at for at in range(0, len(block), PAGE)], 1 - n % 2)
        os._exit(0)
    while os.waitpid(mover, os.WNOHANG) == (0, 0):
        session.step(0.0)
        for row in session.probes.tables.ledger.rows():
            for visited in row.visited.values():
                if visited.folio:
                    own = (visited.folio - params.vmemmap) // session.probes.page_size
                    inside = 0 <= known.entry_pfn(visited.entry) - own < 4096
                    tally["of the folio" if inside else "of another page"] += 1
    return dict(tally)


def main(out: str) -> None:
    BALANCING.write_text("0")
    signal.alarm(1200)
    blocks = {"small": mapped(SMALL * PAGE, advice=14 + 1)}  # MADV_NOHUGEPAGE
    blocks["huge"] = mapped(HUGE_PAGES * int(PMD_SIZE.read_text()), advice=14)  # MADV_HUGEPAGE
    if has_mte():
        blocks["tagged"] = mapped(SMALL * PAGE, PROT_MTE)
    with open_session(Config(), running_kernel()) as session:
        oracle = session.checker.open_cases.oracle
        assert oracle, session.oracle_reason
        pages = compare(oracle, os.getpid(), blocks)
        entries = follow(session, blocks)
        facts = vars(session.probes.tables.params.page_format())
    Path(out).write_text(json.dumps({"pages": pages, "entries": entries, "format": facts}))


if __name__ == "__main__":
    main(sys.argv[1])
