"""The ledger and its checker under random interleavings.

Never a false `violated`; never a missed one when nothing was lost. What runs here is the C of
probes/, compiled for this process, and the cases, oracle and invariants of tracer/; only the kernel
is a model.
"""

from __future__ import annotations

from collections import Counter
from typing import ClassVar

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.support.checker_rig import CheckerRig
from tests.support.model_kernel import (
    MIGRATION_READ,
    MIGRATION_WRITE,
    ModelKernel,
    SimMigration,
    SimMm,
)
from tests.support.page_formats import ARM_LPA2, X86_4, Format
from tracer.invariants.verdict import Verdict

ADDRESSES = [0x7F0000000000 + n * 0x1000 for n in range(4)] + [0x7F0000200000, 0x100000000000]
_LIMITS = settings(
    max_examples=150,
    stateful_step_count=40,
)


class Kernel(RuleBasedStateMachine):
    """One model; bugs happen only through `buggy_remap`, losses only through small maps."""

    SIZES: ClassVar[dict[str, int]] = {}
    SCAN = True
    HOOKS = True
    MMAP_LOCK = True
    FORM: ClassVar[Format] = X86_4

    def __init__(self) -> None:
        super().__init__()
        self.model = ModelKernel(self.FORM, self.HOOKS, b"", **self.SIZES)
        self.model.mmap_lock = self.MMAP_LOCK
        self.checked, self.slow = Counter[tuple[str, Verdict]](), False
        self.checker = CheckerRig(self.model, scan=self.SCAN)
        self.warm_up(self.model.new_mm())
        self.migrations: list[SimMigration] = []
        self.forks: list[tuple[SimMm, SimMm, list[int]]] = []
        self.next_tid = 500
        self.in_fork: set[SimMm] = set()

    def warm_up(self, mm: SimMm) -> None:
        """Migrate three pages, so that all types of migration entries have been seen."""
        migration = self.model.start(499)
        for kind in (MIGRATION_READ, MIGRATION_READ + 1, MIGRATION_WRITE):
            pfn = self.model.map_page(mm, ADDRESSES[0])
            self.model.unmap_folio(migration, pfn, kind)
            self.model.remap_folio(migration, pfn)
            self.model.zap(mm, ADDRESSES[0])
        self.model.end(migration)

    def _mm(self, data: st.DataObject) -> SimMm:
        return data.draw(
            st.sampled_from([mm for mm in self.model.mms if mm.tgid in self.model.tasks])
        )

    @rule(data=st.data(), addr=st.sampled_from(ADDRESSES))
    def touch(self, data: st.DataObject, addr: int) -> None:
        mm = self._mm(data)
        if addr not in mm.entries and mm not in self.in_fork:
            self.model.map_page(mm, addr)

    @rule(data=st.data(), addr=st.sampled_from(ADDRESSES))
    def share(self, data: st.DataObject, addr: int) -> None:
        """Map a page that another mm has already (a file page, say), at another address perhaps."""
        mm, other = self._mm(data), self._mm(data)
        pages = [
            other.entries[a]
            for a in other.entries
            if a not in other.migrating and other.entries[a] not in self.model.locked
        ]
        if pages and addr not in mm.entries and mm not in self.in_fork:
            self.model.map_page(mm, addr, data.draw(st.sampled_from(pages)))

    @precondition(lambda self: len(self.migrations) < 3)
    @rule()
    def start_migration(self) -> None:
        self.next_tid += 1
        self.migrations.append(self.model.start(self.next_tid))

    @precondition(lambda self: self.migrations)
    @rule(data=st.data())
    def unmap(self, data: st.DataObject) -> None:
        pages = {
            p
            for mm in self.model.mms
            for a, p in mm.entries.items()
            if a not in mm.migrating and p not in self.model.locked
        }
        pages -= {mm.entries[a] for mm in self.model.mms for a in mm.migrating}
        if pages:
            self.model.unmap_folio(
                data.draw(st.sampled_from(self.migrations)),
                data.draw(st.sampled_from(sorted(pages))),
            )

    def _busy(self) -> list[SimMigration]:
        return [m for m in self.migrations if m.pfns]

    @precondition(lambda self: self._busy())
    @rule(data=st.data(), backwards=st.booleans())
    def remap(self, data: st.DataObject, backwards: bool) -> None:
        """Where only tracepoints are seen, a copy must be removed after what it was copied from, as
        the order of the rmap trees has it."""
        migration = data.draw(st.sampled_from(self._busy()))
        self.model.remap_folio(
            migration,
            data.draw(st.sampled_from(migration.pfns)),
            backwards=backwards and self.HOOKS,
        )

    @precondition(lambda self: self._busy())
    @rule(data=st.data(), skip=st.integers(1, 2))
    def buggy_remap(self, data: st.DataObject, skip: int) -> None:
        migration = data.draw(st.sampled_from(self._busy()))
        self.model.remap_folio(migration, data.draw(st.sampled_from(migration.pfns)), skip)

    @precondition(lambda self: self._busy())
    @rule(data=st.data(), skip=st.integers(0, 1))
    def blind_remap(self, data: st.DataObject, skip: int) -> None:
        """The second walk comes and does not restore what it finds."""
        migration = data.draw(st.sampled_from(self._busy()))
        self.model.remap_folio(migration, data.draw(st.sampled_from(migration.pfns)), skip, blind=1)

    @precondition(lambda self: self.migrations)
    @rule(data=st.data())
    def end_migration(self, data: st.DataObject) -> None:
        migration = data.draw(st.sampled_from(self.migrations))
        for pfn in list(migration.pfns):
            self.model.remap_folio(migration, pfn)
        self.model.end(migration)
        self.migrations.remove(migration)

    @rule(data=st.data())
    def zap(self, data: st.DataObject) -> None:
        mm = self._mm(data)
        unlocked = [
            a
            for a in mm.entries
            if not (a in mm.migrating and mm.entries[a] not in self.model.locked)
        ]
        if unlocked and mm not in self.in_fork:
            self.model.zap(mm, data.draw(st.sampled_from(unlocked)))

    @rule(data=st.data(), to=st.sampled_from(ADDRESSES))
    def mremap(self, data: st.DataObject, to: int) -> None:
        mm = self._mm(data)
        blind = (
            not self.SCAN and self.model.next_mm > 2
        )  # a copy that is moved before its parent's is removed
        movable = sorted(a for a in mm.entries if (mm.number, a) not in self.checker.proven())
        again = (
            (
                mm.number,
                to,
            )
            in self.checker.proven()
        )  # where another of its page was proven and is gone: a documented blind spot
        if movable and to not in mm.entries and mm not in self.in_fork and not blind and not again:
            self.model.move(mm, data.draw(st.sampled_from(movable)), to)

    @precondition(lambda self: len(self.model.mms) < 5)
    @rule(data=st.data())
    def begin_fork(self, data: st.DataObject) -> None:
        parent = self._mm(data)
        if parent not in self.in_fork:
            self.in_fork.add(parent)
            self.forks.append((parent, self.model.begin_fork(parent), sorted(parent.entries)))

    @precondition(lambda self: self.forks)
    @rule(data=st.data(), whole=st.booleans())
    def go_on_forking(self, data: st.DataObject, whole: bool) -> None:
        fork = data.draw(st.sampled_from(self.forks))
        parent, child, left = fork
        while left:
            self.model.copy_page(parent, child, left.pop(0))
            if not whole:
                return
        self.model.end_fork(parent, child)
        self.forks.remove(fork)
        self.in_fork.discard(parent)

    @precondition(lambda self: len(self.model.tasks) > 1)
    @rule(data=st.data())
    def exit(self, data: st.DataObject) -> None:
        mm = self._mm(data)
        if mm not in self.in_fork:
            self.model.exit(mm)

    @rule(
        addr=st.sampled_from(ADDRESSES),
        data=st.data(),
        how=st.sampled_from(["removed", "replaced", "replaced"]),
    )
    def split_outside(self, addr: int, data: st.DataObject, how: str) -> None:
        """A THP split of one task, again and again, where its function is not hooked: insertions
        outside of a migration, and removals that have no tracepoint where the shared zeropage is
        put."""
        mm = self._mm(data)
        if mm in self.in_fork or mm.entries.get(addr) in self.model.locked or addr in mm.migrating:
            return
        pfn = mm.entries.get(addr) or self.model.map_page(mm, addr)
        if sum(pfn in other.entries.values() for other in self.model.mms) > 1:
            return
        self.model.become(self.next_tid % 2 + 90)
        entry = self.model.form.swap(MIGRATION_WRITE, pfn)
        self.model.put(self.model.slot(mm, addr), entry)
        self.model.fire("set_migration_pte", addr, entry, 9)
        if how == "removed":
            self.model.map_page(mm, addr, pfn)
            self.model.fire("remove_migration_pte", addr, pfn << 12, 0)
        else:
            self.model.zap(mm, addr)  # the shared zeropage is nobody's to migrate

    @rule(seconds=st.sampled_from([1, 11]))
    def time_passes(self, seconds: int) -> None:
        """A tick: entries grow older than their age limit, splits are judged after a second.

        A page that is locked for so long may be taken for that of an earlier entry at its address,
        which is a suspect then.
        """
        self.slow |= seconds > 10 and bool(self._busy())
        self.model.tick(seconds * 10**9)
        before = len(self.checker.decided)
        self.checker.tick()
        self.checker.work()
        proven = {
            (a.mm.id, a.addr) for one in self.checker.decided[before:] for a in one.decision.proven
        }
        assert proven <= self.model.left_behind(), "a false violation"

    @invariant()
    def every_entry_is_accounted_for(self) -> None:
        """Recorded and copied entries are removed, judged, or outstanding; none has two verdicts,
        and no count falls."""
        counters, checker = self.model.tables.counters.read(), self.checker
        recorded = counters["ENTRIES_RECORDED"] + counters["ENTRIES_COPIED"]
        outstanding = (
            sum(row.count for row in self.model.tables.ledger.rows()) + checker.open_cases.held()
        )
        assert recorded == counters["ENTRIES_REMOVED"] + checker.entries.total() + outstanding
        checks = checker.checks()
        m4 = sum(checks["M4", verdict] for verdict in Verdict) - counters["LEDGER_LOST"]
        assert m4 <= recorded, "an entry counted twice"
        fallen = {
            name: (count, checks[name])
            for name, count in self.checked.items()
            if checks[name] < count
        }
        assert not fallen, "a counter went backwards"
        self.checked = checks

    @rule(scan=st.booleans())
    def daemon_looks(self, scan: bool) -> None:
        """Whatever is proven now is the truth now: the model stands still while the daemon
        looks."""
        before = len(self.checker.decided)
        self.model.tick(6_000_000)
        if scan:
            self.checker.open_cases.scan(now=True)
        self.checker.wake_up()
        proven = {
            (a.mm.id, a.addr) for one in self.checker.decided[before:] for a in one.decision.proven
        }
        assert proven <= self.model.left_behind(), "a false violation"

    def teardown(self) -> None:
        for fork in list(self.forks):
            parent, child, left = fork
            for addr in left:
                self.model.copy_page(parent, child, addr)
            self.model.end_fork(parent, child)
        for migration in list(self.migrations):
            for pfn in list(migration.pfns):
                self.model.remap_folio(migration, pfn)
            self.model.end(migration)
        truth = self.model.left_behind()
        before = self.checker.proven()
        self.checker.end()
        self.verdicts(truth, before)

    def verdicts(self, truth: set[tuple[int, int]], before: set[tuple[int, int]]) -> None:
        found = self.checker.proven() - before
        assert found <= truth, "a false violation"
        assert {self.model.names[entry] for entry in truth} <= set(self.checker.accused), (
            "a missed violation"
        )
        assert len(self.checker.accused) == len(set(self.checker.accused)), (
            "one entry, counted twice"
        )
        checks = self.checker.checks()
        assert not checks["M1", Verdict.UNVERIFIABLE], "nothing was lost"
        for (_, _, number, _, pfn), ruling in self.checker.second_walks.items():
            told = {Verdict.VIOLATED: self.model.passed, Verdict.HOLDS: self.model.seen}.get(
                ruling.verdict, {(number, pfn)}
            )
            assert (number, pfn) in told, "M5 tells the wrong story"
        counters = self.model.tables.counters.read()
        recorded = counters["ENTRIES_RECORDED"] + counters["ENTRIES_COPIED"]
        unrecorded = sum(
            max(0, len(one.decision.proven) - one.entries)
            for one in self.checker.decided
            if one.case.invariant == "M1"
        )
        violated = self.checker.tally.checks["M1", Verdict.VIOLATED]
        assert violated == len(self.checker.accused)
        suspects = checks["M1", Verdict.SUSPECT]
        assert self.slow or not suspects, "what could be proven was not"
        assert checks["M1", Verdict.HOLDS] + violated + suspects == recorded + unrecorded
        assert recorded == counters["ENTRIES_REMOVED"] + self.checker.entries.total()


class KernelWithoutScan(Kernel):
    """Events and the questions that follow from them must be enough but for the documented blind
    spot."""

    SCAN = False


class KernelWithoutHooks(Kernel):
    """Tracepoints alone: entries of several mms at one address are one row, and M5 says nothing."""

    HOOKS = False


class KernelWithoutMmapLock(KernelWithoutScan):
    """Fidelity `owner` or `migration`: forks are known by what dup_mmap() calls."""

    MMAP_LOCK = False


class KernelOfArm64(Kernel):
    """Five levels of LPA2."""

    FORM: ClassVar[Format] = ARM_LPA2


class LossyKernel(Kernel):
    """The same with maps of a few rows: checks become unverifiable, and nothing is accused that is
    not guilty."""

    SIZES: ClassVar[dict[str, int]] = {
        "LEDGER_ROWS": 2,
        "MIGRATION_ROWS": 1,
        "TASKS": 1,
        "VISIT_ROWS": 2,
    }

    def verdicts(self, truth: set[tuple[int, int]], before: set[tuple[int, int]]) -> None:
        assert self.checker.proven() - before <= truth, "a false violation"
        assert truth <= self.checker.proven(), "the last sweep finds even what was never recorded"


class KernelThatMissesRuns(Kernel):
    """The kernel leaves out runs of programs (lazy preemption): nothing is accused that is not
    guilty, and the scan finds what is."""

    @rule(
        hook=st.sampled_from(
            "mm_migrate_pages_start mm_migrate_pages set_migration_pte remove_migration_pte"
            " first_walk first_walk_leave".split()
            + "second_walk second_walk_leave".split()
        )
    )
    def miss(self, hook: str) -> None:
        self.model.missing.add(hook)

    def verdicts(self, truth: set[tuple[int, int]], before: set[tuple[int, int]]) -> None:
        assert self.checker.proven() - before <= truth, "a false violation"
        assert truth <= self.checker.proven(), "the last sweep finds even what was never recorded"
        for (_, _, number, _, pfn), ruling in self.checker.second_walks.items():
            assert ruling.verdict is not Verdict.VIOLATED or (number, pfn) in self.model.passed, (
                "M5 accuses a walk that was there"
            )


TestKernel = Kernel.TestCase
TestKernel.settings = _LIMITS
TestKernelWithoutScan = KernelWithoutScan.TestCase
TestKernelWithoutScan.settings = _LIMITS
TestKernelWithoutHooks = KernelWithoutHooks.TestCase
TestKernelWithoutHooks.settings = _LIMITS
TestKernelWithoutMmapLock = KernelWithoutMmapLock.TestCase
TestKernelWithoutMmapLock.settings = _LIMITS
TestKernelThatMissesRuns = KernelThatMissesRuns.TestCase
TestKernelThatMissesRuns.settings = _LIMITS
TestKernelOfArm64 = KernelOfArm64.TestCase
TestKernelOfArm64.settings = _LIMITS
TestLossyKernel = LossyKernel.TestCase
TestLossyKernel.settings = _LIMITS
