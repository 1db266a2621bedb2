"""M2, M3 and R1 by tracepoints alone: a page that nobody has locked, a kernel that migrates.

Skipped where the callbacks of the rmap walks can be hooked: the hooks check there.
"""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.model_kernel import USER_BITS, swap_entry
from tracer.config import Config
from tracer.daemon.probes import running_kernel
from tracer.daemon.session import Session, open_session
from tracer.memory.calibration import mapping_address, own_pfn

PAGE = mmap.PAGESIZE
MIGRATION_WRITE = 30
LOAD = """
import ctypes, mmap, os, time
ANON = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
blocks = [mmap.mmap(-1, 1 << 20, flags=ANON) for _ in range(200)]
for block in blocks:
    for at in range(0, 1 << 20, 4096):
        block[at] = 1
for block in blocks[1::4]:
    address = ctypes.addressof(ctypes.c_char.from_buffer(block))
    ctypes.CDLL(None).mprotect(ctypes.c_void_p(address), ctypes.c_size_t(1 << 20), 0)
twin = os.fork()
end = time.time() + 8
while twin == 0 and time.time() < end:
    time.sleep(0.1)
while twin and time.time() < end:
    for _ in range(4):
        blocks.pop(len(blocks) // 2)
    with open("/proc/sys/vm/compact_memory", "w") as trigger:
        trigger.write("1")
    blocks += [mmap.mmap(-1, 1 << 20, flags=ANON) for _ in range(4)]
    for block in blocks[-4:]:
        for at in range(0, 1 << 20, 4096):
            block[at] = 1
if twin:
    os.waitpid(twin, 0)
"""


@pytest.fixture
def session() -> Iterator[Session]:
    with open_session(Config(), running_kernel()) as opened:
        if {"first_walk", "second_walk"} & opened.probes.loaded.attached():
            pytest.skip("the callbacks of the rmap walks are hooked")
        assert not opened.oracle_reason
        yield opened


def test_page_of_our_own_that_nobody_has_locked_is_accused(session: Session) -> None:
    page = mmap.mmap(-1, PAGE)
    page[0] = 1
    addr = mapping_address(page)
    pfn = own_pfn(addr)
    programs = session.probes.loaded.programs
    programs["set_migration_pte"][0].run(addr, swap_entry(MIGRATION_WRITE, pfn), 0)
    programs["remove_migration_pte"][0].run(addr, pfn << 12 | USER_BITS, 0)
    session.checker.read_events(session.probes.ring.read())
    folio = session.probes.tables.params.get().vmemmap + pfn * session.probes.page_size
    found = {
        one.first.invariant: one.first.evidence
        for one in session.checker.tally.violations.values()
        if one.first.task["pid"] == os.getpid()
    }
    assert {name: evidence["folio"] for name, evidence in found.items()} == {
        "M2": hex(folio),
        "M3": hex(folio),
    }
    assert {evidence["addr"] for evidence in found.values()} == {hex(addr)}


@pytest.mark.skipif(not Path("/proc/sys/vm/compact_memory").exists(), reason="no compaction")
def test_kernel_that_migrates_is_not_accused(session: Session) -> None:
    subprocess.run([sys.executable, "-c", LOAD], check=True)
    session.checker.read_events(session.probes.ring.read())
    counters = session.probes.tables.counters.read()
    assert counters["M2_HOLDS"] > 1000
    assert counters["M3_HOLDS"] > 1000
    assert counters["R1_HOLDS"] > 1000
    assert counters["FIRST_WALKS_EMPTIED"] > 100
    names = "M2_VIOLATED M2_UNVERIFIABLE M3_VIOLATED M3_UNVERIFIABLE R1_VIOLATED R1_UNVERIFIABLE"
    assert {name: counters[name] for name in names.split()} == dict.fromkeys(names.split(), 0)
    accused = {one.first.invariant for one in session.checker.tally.violations.values()}
    assert not accused & {"M2", "M3", "R1"}
