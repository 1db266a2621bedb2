"""The state audit on this kernel: healthy mms, faults put into what it reads, and bad days."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest

from tests.live.conftest import rmapd, run_exec
from tests.support.many_vmas import victim
from tracer.config import Config
from tracer.daemon import probes
from tracer.daemon.levels import AUDIT_ONLY
from tracer.daemon.probes import running_kernel
from tracer.daemon.session import Session, open_session
from tracer.daemon.snapshots import build_snapshot
from tracer.invariants.base import Coverage
from tracer.invariants.verdict import Finding
from tracer.kernel.btf import Btf
from tracer.memory.maple_node import ARANGE, LEAF, node_address, node_type, path_to
from tracer.memory.vma_trees import LAST_ADDRESS, Trees
from tracer.tables.mm import Mm

WORD = 8


@contextlib.contextmanager
def session(tmp_path: Path, head: str = "") -> Iterator[Session]:
    """An audit without any other probe. head: C in front of audit.bpf.c."""
    folder = tmp_path / "probes"
    shutil.copytree(probes.probes_folder(), folder)
    source = folder / "audit.bpf.c"
    source.write_text(head + source.read_text())
    config = msgspec.structs.replace(Config(), fidelity=AUDIT_ONLY, cache="")
    with open_session(config, running_kernel(), [folder]) as opened:
        assert opened.audit, opened.audit_reason
        yield opened


@dataclass
class Tree:
    """The victim's maple tree as it is: copies of its nodes and VMAs, and offsets of members."""

    reader: Trees
    mm: Mm
    offsets: Mapping[str, int]

    def words(self, at: int) -> Sequence[int]:
        return self.reader.copy([at])[at]

    def word(self, at: int, member: str) -> int:
        return self.words(at + self.offsets[member] // WORD * WORD)[0]

    def __post_init__(self) -> None:
        look = self.reader.look(self.mm, 0, 0, 1)
        self.root = look.root & ~2
        self.inner: list[int] = []
        self.leaves: list[int] = []
        waiting = [self.root]
        while waiting:
            entry = waiting.pop()
            at, words = node_address(entry), self.words(node_address(entry))
            if node_type(entry) == ARANGE:
                self.inner.append(at)
                waiting += list(words[10 : 11 + (words[30] & 255)])
            else:
                assert node_type(entry) == LEAF
                self.leaves.append(at)

    def vma_at(self, address: int) -> int:
        leaf = path_to(address, self.root, self.reader.copy, LAST_ADDRESS)[-1]
        return next(slot for first, last, slot in leaf.ranges() if first <= address <= last)


MEMBERS = {
    "vm_start": "vm_area_struct.vm_start",
    "vm_end": "vm_area_struct.vm_end",
    "vm_mm": "vm_area_struct.vm_mm",
    "anon_vma": "vm_area_struct.anon_vma",
    "chain": "vm_area_struct.anon_vma_chain.next",
    "rb": "vm_area_struct.shared.rb",
    "avc_same_vma": "anon_vma_chain.same_vma.next",
    "avc_anon_vma": "anon_vma_chain.anon_vma",
    "avc_vma": "anon_vma_chain.vma",
    "avc_rb": "anon_vma_chain.rb",
    "index": "folio.index",
}


def offsets(types: Btf) -> dict[str, int]:
    found = {name: types.resolve(path) for name, path in MEMBERS.items()}
    return {name: field.bit_offset // 8 for name, field in found.items() if field}


@pytest.fixture(scope="module")
def injected(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Session, Tree, int, int]]:
    folder = tmp_path_factory.mktemp("audit")
    with (
        victim(600, 2) as (process, base, unfaulted),
        session(folder, "#define AUDIT_INJECT 1\n") as opened,
    ):
        assert opened.audit
        reader = opened.audit.reader
        mm = next(mm for mm in reader.mms() if mm.tgid == process.pid)
        tree = Tree(reader, mm, offsets(opened.probes.kernel.types))
        yield opened, tree, base, unfaulted


def found_with(opened: Session, tree: Tree, at: int, word: int, flip: int) -> list[Finding]:
    """The findings of a pass over the victim, with bits flipped in what is read at `at`."""
    table = opened.probes.loaded.maps["audit_inject"]
    opened.checker.tally.violations.clear()
    table.update(bytes(4), struct.pack("<QQQ", at, word, flip))
    try:
        assert opened.audit
        opened.audit.whole_pass(time.sleep, tree.mm.tgid)
    finally:
        table.update(bytes(4), bytes(24))
    return [one.first for one in opened.checker.tally.violations.values()]


def page_at(opened: Session, tree: Tree, address: int) -> int:
    """Return the struct page that the victim has mapped at an address."""
    oracle = opened.checker.open_cases.oracle
    assert oracle
    (entry,) = oracle.ask([(tree.mm, address)])
    vmemmap: int = opened.probes.tables.params.get().vmemmap
    return vmemmap + entry.present_pfn * opened.probes.page_size


def faults(
    opened: Session, tree: Tree, base: int, unfaulted: int
) -> dict[str, tuple[int, int, int, str]]:
    """Fault -> (object, word, bits, the problem that it is)."""
    offset = {name: number // WORD for name, number in tree.offsets.items()}
    inner = next(at for at in tree.inner if (tree.words(at)[30] & 255) > 2)
    gaps = tree.words(inner)[20:30]
    other = next(n for n in range(tree.words(inner)[30] & 255) if gaps[n] != max(gaps))
    named = tree.words(inner)[30] >> 8 & 255
    leaf = next(at for at in tree.leaves if tree.words(at)[1] and tree.words(at)[18])
    full = next(n for n in range(1, 8) if tree.words(leaf)[16 + n])
    vma = tree.vma_at(base + 400 * mmap_pages(4))
    anon_vma, idle = tree.word(vma, "anon_vma"), tree.vma_at(unfaulted)
    avc = tree.word(vma, "chain") - tree.offsets["avc_same_vma"]
    rb = avc + tree.offsets["avc_rb"]
    page = page_at(opened, tree, base + 200 * mmap_pages(4))
    return {
        "a gap of an inner node is too large": (inner, 20 + other, 4096, "NODE_GAP_OF_PARENT"),
        "the metadata names another slot": (inner, 30, (named ^ other) << 8, "NODE_GAP"),
        "a pivot of an inner node is off": (inner, 1, 4096, "NODE_"),
        "a pivot of a leaf is off by a page": (leaf, 1, 4096, "VMA_RANGE"),
        "a stale parent pointer": (leaf, 0, 256, "NODE_PARENT"),
        "a parent's other slot": (leaf, 0, 8, "NODE_PARENT"),
        "a dead leaf in the tree": (leaf, 0, tree.words(leaf)[0] ^ leaf, "NODE_DEAD"),
        "a VMA missing in its leaf": (leaf, 16 + full, tree.words(leaf)[16 + full], "MAP_COUNT"),
        "vm_start is off": (vma, offset["vm_start"], 4096, "VMA_RANGE"),
        "vm_end is off": (vma, offset["vm_end"], 4096, "VMA_RANGE"),
        "vm_mm is another mm": (vma, offset["vm_mm"], 1 << 12, "VMA_MM"),
        "an anon_vma without a chain": (idle, offset["anon_vma"], anon_vma, "VMA_ANON_VMA"),
        "a chain without an anon_vma": (vma, offset["anon_vma"], anon_vma, "VMA_ANON_VMA"),
        "an entry of another VMA": (avc, offset["avc_vma"], 256, "CHAIN_VMA"),
        "a wrong end of a subtree": (rb, 3, 1, "INTERVAL_SUBTREE"),
        "an entry in no tree": (rb, 0, tree.words(rb)[0] ^ rb, "INTERVAL_UNLINKED"),
        "a page with another index": (page, offset["index"], 4, "PAGE_INDEX"),
    }


def mmap_pages(count: int) -> int:
    return count * os.sysconf("SC_PAGESIZE")


def test_each_fault_that_is_put_into_what_is_read_is_found_and_named(
    injected: tuple[Session, Tree, int, int],
) -> None:
    opened, tree, base, unfaulted = injected
    assert found_with(opened, tree, 0, 0, 0) == []
    for fault, (at, word, flip, problem) in faults(opened, tree, base, unfaulted).items():
        found = found_with(opened, tree, at, word, flip)
        assert any(problem in one.shape for one in found), (fault, [one.shape for one in found])
        assert {one.task["pid"] for one in found} == {tree.mm.tgid}, fault
        if problem == "PAGE_INDEX":
            assert found[0].evidence["folio_now"]["kind"] == "anon"
        if problem.startswith("INTERVAL_"):  # of the victim's chain entry
            assert any("tree=anon_vma" in one.shape for one in found)
    assert found_with(opened, tree, 0, 0, 0) == []


def test_evidence_of_a_bad_node_is_the_path_from_the_root(
    injected: tuple[Session, Tree, int, int],
) -> None:
    opened, tree, base, unfaulted = injected
    at, word, flip, _ = faults(opened, tree, base, unfaulted)["a stale parent pointer"]
    (found,) = found_with(opened, tree, at, word, flip)
    assert found.invariant == "V4"
    path = found.evidence["path"]
    assert path[0]["node"] == hex(node_address(tree.root))
    assert [step["node"] for step in path if step.get("bad")] == [hex(at)]
    assert path[-1]["type"] == "maple_leaf_64"
    assert "gaps" in path[0]


def test_audit_of_a_healthy_machine_finds_nothing() -> None:
    done = rmapd("audit", "--format", "json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["violations"] == []
    assert found["audit"]["mms"] > 5
    for name in ("V3", "V4", "R2", "R4"):
        assert found["invariants"][name]["checks"]["holds"] > 50


def test_audit_of_a_process_without_an_address_space_is_an_error() -> None:
    done = rmapd("audit", "--pid", "2")
    assert done.returncode == 2
    assert "kernel thread" in done.stderr


def test_mms_that_exit_during_a_look_accuse_nobody(tmp_path: Path) -> None:
    with session(tmp_path) as opened, victim(20_000) as (process, _, _):
        assert opened.audit
        mm = next(mm for mm in opened.audit.reader.mms() if mm.tgid == process.pid)
        os.kill(process.pid, signal.SIGKILL)
        looks = [opened.audit.reader.look(mm) for _ in range(200)]
        assert not looks[-1].alive
        assert all(look.complete for look in looks)
        with subprocess.Popen(["sh", "-c", "for n in $(seq 300); do true & done; wait"]) as forks:
            while forks.poll() is None:
                opened.audit.whole_pass(time.sleep)
        assert not opened.checker.tally.violations


def test_exec_reports_what_was_audited(tmp_path: Path) -> None:
    done, report = run_exec(tmp_path, command=["true"])
    assert done.returncode == 0
    assert report["audit"]["passes"] >= 2
    assert report["invariants"]["V4"]["checks"]["holds"] > 50


def test_kernel_without_a_calibrated_base_is_not_audited(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A stale pointer could lead to a device's memory: nothing is read, and coverage gives why."""
    monkeypatch.setattr("tracer.daemon.session.calibrate", lambda *_: "own pages disagree")
    config = msgspec.structs.replace(Config(), fidelity=AUDIT_ONLY, cache=str(tmp_path))
    with open_session(config, running_kernel()) as opened:
        assert opened.audit is None
        snapshot = build_snapshot(opened)
        for name in ("V3", "V4", "R2", "R4"):
            coverage, why = snapshot.coverage[name]
            assert coverage is Coverage.NONE
            assert "the direct map is not calibrated: own pages disagree" in why
        assert not snapshot.audit.counted
        assert snapshot.audit.reason == "the direct map is not calibrated: own pages disagree"


@pytest.mark.parametrize("setting", ["always", "force"])
def test_huge_pages_of_shmem_do_not_hide_the_direct_map(setting: str) -> None:
    """rmapd learns the direct map from pages of its own, which must be small ones."""
    path = Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled")
    before = re.search(r"\[(\w+)\]", path.read_text())
    assert before
    path.write_text(setting)
    try:
        done = rmapd("audit", "--format", "json", "-q")
    finally:
        path.write_text(before[1])
    assert done.returncode == 0, done.stderr
