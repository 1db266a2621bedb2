"""The oracle compared with pagemap, on pages of other processes.

Also on addresses without a page and on processes that exited.
"""

from __future__ import annotations

import mmap
import os
import random
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.live.conftest import ROOT
from tests.support.daemons import until
from tracer.config import Config
from tracer.daemon.probes import running_kernel
from tracer.daemon.session import Session, open_session
from tracer.tables.mm import Mm

PAGE = mmap.PAGESIZE


@pytest.fixture(scope="module")
def session() -> Iterator[Session]:
    with open_session(Config(), running_kernel()) as opened:
        assert opened.checker.open_cases.oracle, opened.oracle_reason
        yield opened


SLEEPING_PROCESS = """
import mmap, random, sys, time
kept = []
for size in (1 << 22, 1 << 20, 3 << 20):
    block = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for offset in range(0, size, 4096):
        if random.random() < 0.7:
            block[offset] = 1
    kept.append(block)
huge = mmap.mmap(-1, 8 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
huge.madvise(14)
for offset in range(0, 8 << 20, 4096):
    huge[offset] = 1
print("ready", flush=True)
time.sleep(600)
"""


@pytest.fixture
def sleepers() -> Iterator[list[int]]:
    children = [
        subprocess.Popen(
            [sys.executable, "-c", SLEEPING_PROCESS], stdout=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    for child in children:
        assert child.stdout
        assert child.stdout.readline() == "ready\n"
    yield [child.pid for child in children]
    for child in children:
        child.kill()
        child.communicate()


def ranges(pid: int) -> list[tuple[int, int]]:
    out = []
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        if "[v" not in line:
            start, end = (int(part, 16) for part in line.split()[0].split("-"))
            out.append((start, end))
    return out


def pagemap(pid: int, addr: int) -> int:
    """Return the pagemap entry of a page.

    On an entry that is left behind, reading triggers a BUG of the kernel: only healthy processes
    of the tests are read.
    """
    with open(f"/proc/{pid}/pagemap", "rb", buffering=0) as file:
        raw = os.pread(file.fileno(), 8, addr // PAGE * 8)
    return int(struct.unpack("<Q", raw)[0]) if len(raw) == 8 else 0


def mm_of(session: Session, pid: int) -> Mm:
    assert session.checker.open_cases.oracle
    return next(mm for mm in session.checker.open_cases.oracle.mms() if mm.tgid == pid)


def test_oracle_agrees_with_pagemap_for_a_thousand_pages(
    session: Session, sleepers: list[int]
) -> None:
    oracle = session.checker.open_cases.oracle
    assert oracle
    chosen, levels = 0, set()
    for pid in sleepers:
        mm = mm_of(session, pid)
        addresses = [a for start, end in ranges(pid) for a in range(start, end, PAGE)]
        present = [a for a in addresses if pagemap(pid, a) >> 63]
        absent = [a for a in addresses if not pagemap(pid, a) >> 62]
        picked = random.Random(23).sample(present, 400)
        answers = oracle.ask([(mm, addr) for addr in picked])
        for addr, answer in zip(picked, answers, strict=True):
            assert answer.found == "FOUND_PRESENT", hex(addr)
            assert answer.present_pfn == pagemap(pid, addr) & ((1 << 55) - 1), hex(addr)
            levels.add(answer.level)
        chosen += len(picked)
        for answer in oracle.ask([(mm, addr) for addr in absent[:200]]):
            assert answer.found == "FOUND_NOTHING"
    assert chosen >= 1000
    assert levels == {1, 2}, "small and huge pages are among them"


def test_unmapped_addresses_hold_nothing(session: Session, sleepers: list[int]) -> None:
    oracle = session.checker.open_cases.oracle
    assert oracle
    mm = mm_of(session, sleepers[0])
    mapped = ranges(sleepers[0])
    addresses = [
        a for a in range(0, 1 << 47, 1 << 39) if not any(start <= a < end for start, end in mapped)
    ]
    assert {answer.found for answer in oracle.ask([(mm, addr) for addr in addresses])} <= {
        "FOUND_NOTHING"
    }


def test_exited_process_has_no_entries_left_behind(session: Session) -> None:
    oracle = session.checker.open_cases.oracle
    assert oracle
    child = subprocess.Popen(
        [sys.executable, "-c", SLEEPING_PROCESS], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout
    child.stdout.readline()
    mm, mapped = mm_of(session, child.pid), ranges(child.pid)
    addresses = [start for start, _ in mapped]
    assert any(
        answer.found == "FOUND_PRESENT" for answer in oracle.ask([(mm, addr) for addr in addresses])
    )
    child.send_signal(signal.SIGKILL)
    child.communicate()
    for _ in range(50):
        answers = oracle.ask([(mm, addr) for addr in addresses])
        assert not any(answer.left_behind for answer in answers)
    assert child.pid not in {mm.tgid for mm in oracle.mms()}


def test_swapped_out_pages_are_not_read_as_migration_entries(
    session: Session, tmp_path: Path
) -> None:
    """The type of a swap file's entries differs from the types that a migration uses."""
    swap = ROOT / ".swap-for-tests"
    with open(swap, "wb") as file:
        os.posix_fallocate(file.fileno(), 0, 32 << 20)
    swap.chmod(0o600)
    try:
        subprocess.run(["/usr/sbin/mkswap", str(swap)], check=True, capture_output=True)
        subprocess.run(["/usr/sbin/swapon", str(swap)], check=True, capture_output=True)
        try:
            code = (
                "import mmap,time\n"
                "b=mmap.mmap(-1,4<<20,flags=mmap.MAP_PRIVATE|mmap.MAP_ANONYMOUS)\n"
                "b.madvise(15)\n"
                "for o in range(0,4<<20,4096): b[o]=o>>12&255 or 1\n"
                "b.madvise(21)\n"
                "print('ready',flush=True)\n"
                "time.sleep(600)"
            )
            child = subprocess.Popen(
                [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True
            )
            try:
                assert child.stdout
                child.stdout.readline()
                pages = [
                    a
                    for start, end in ranges(child.pid)
                    for a in range(start, end, PAGE)
                    if pagemap(child.pid, a) >> 62 == 1
                ]
                assert len(pages) > 100, "MADV_PAGEOUT swapped nothing out"
                oracle = session.checker.open_cases.oracle
                assert oracle
                mm = mm_of(session, child.pid)
                assert {answer.found for answer in oracle.ask([(mm, addr) for addr in pages])} == {
                    "FOUND_OTHER"
                }
                assert not [a for a in oracle.sweep(oracle.mms()).answers if a.left_behind]
            finally:
                child.kill()
                child.communicate()
        finally:
            subprocess.run(["/usr/sbin/swapoff", str(swap)], check=True)
    finally:
        swap.unlink()


def test_sweep_reads_every_table(session: Session, sleepers: list[int]) -> None:
    oracle = session.checker.open_cases.oracle
    assert oracle
    sweep = oracle.sweep(oracle.mms())
    assert sweep.complete
    assert sweep.tables > len(sleepers) * 10
    assert not [answer for answer in sweep.answers if answer.left_behind]


def test_calibrated_base_addresses_are_plausible(session: Session) -> None:
    params = session.probes.tables.params.get()
    assert params.page_offset % (1 << 30) == 0
    assert params.page_offset >> 47 == (1 << 17) - 1
    assert params.vmemmap >> 47 == (1 << 17) - 1


def test_mm_that_exits_unseen_is_no_longer_listed(session: Session) -> None:
    """A fork's child exits while the gate is closed: the map of fork windows still names its mm."""
    tables, oracle = session.probes.tables, session.checker.open_cases.oracle
    assert oracle
    before = {mm.id for mm in tables.other_mms.read()}
    go, end = os.pipe()
    child = os.fork()
    if not child:
        os.read(go, 1)
        os._exit(0)
    (ours,) = [mm for mm in tables.other_mms.read() if mm.id not in before]
    assert ours.id in {mm.id for mm in oracle.mms()}
    tables.params.set(gate=0)
    try:
        os.write(end, b"x")
        os.waitpid(child, 0)
        until(lambda: ours.id not in {mm.id for mm in oracle.mms()}, 10, "the mm is not listed")
        assert ours in tables.other_mms.read(), "the map still has it"
        assert [found.found for found in oracle.ask([(ours, 0)])] == ["FOUND_MM_GONE"]
    finally:
        tables.params.set(gate=1)
        os.close(go)
        os.close(end)
