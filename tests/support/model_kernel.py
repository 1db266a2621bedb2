"""A little kernel: mms with real page tables in memory, pages with locks, tasks, migrations, forks.

It fires the hooks as Linux does.

Every operation leaves page tables and events as mm/migrate.c, mm/rmap.c, mm/memory.c and
mm/mremap.c would. The truth (which entries are left behind) is read from the model, never from the
code under test.
"""

from __future__ import annotations

import ctypes
import mmap
import struct
from collections import Counter
from dataclasses import dataclass, field

from tests.support.native import Native, layouts, synthetic_kernel
from tests.support.page_formats import X86_4, X86_5, Format
from tracer.memory.page_tables import Oracle
from tracer.tables.tables import Tables

PAGE, HUGE = 4096, 512 * 4096
POOL_PAGES = 512
VMEMMAP_PAGES = 34
STACK = 1 << 40
MIGRATION_WRITE, MIGRATION_READ = 30, 28
USER_BITS = X86_4.page(0)

_MM_MEMBERS = {
    "pgd": "mm_struct.pgd",
    "count": "mm_struct.mm_count.counter",
    "number": "mm_struct.context.ctx_id",
}


_MAPCOUNT, _REFCOUNT, _PAGE_MAPPING = 48, 52, 24
_STRUCT_PAGE = bytes(_MAPCOUNT) + b"\xff" * 4 + bytes(64 - _MAPCOUNT - 4)
"""struct page of a page frame: on no list, not locked, not mapped (a mapcount of -1)."""


swap_entry = X86_4.swap


@dataclass(eq=False)
class SimMm:
    at: int
    pgd: int
    number: int
    tgid: int
    entries: dict[int, int] = field(default_factory=dict)  # address -> pfn of the page there
    migrating: set[int] = field(default_factory=set)  # addresses whose entry is a migration entry
    alive: bool = True

    @property
    def vma(self) -> int:
        """The address of its only VMA."""
        return self.at + 2048


@dataclass
class SimMigration:
    tid: int
    pfns: list[int] = field(default_factory=list)
    new: dict[int, int] = field(default_factory=dict)


class ModelKernel:
    """form: of its page tables, or the number of levels of x86-64.

    hooks: whether functions can be hooked, or there are tracepoints alone. types: of the kernel,
    where they are not the usual ones. Sizes shrink the maps.
    """

    def __init__(
        self, form: Format | int = X86_4, hooks: bool = True, types: bytes = b"", **sizes: int
    ) -> None:
        self.form = form if isinstance(form, Format) else {4: X86_4, 5: X86_5}[form]
        self.page_format, self.page = self.form.learned, 1 << self.form.page_shift
        rows = {} if self.form.page_shift == 12 else {"LEAVES": 2 * self.page_format.table_entries}
        self.native = Native(types, page_shift=self.form.page_shift, **rows | sizes)
        self.now = 1_000_000_000
        self.native.set("harness_now", self.now)
        self.native.set("harness_task", 0)
        self.hooks, self.mmap_lock, self.page_tables = hooks, True, POOL_PAGES
        self._memory = mmap.mmap(-1, (POOL_PAGES + 1) * self.page)
        base = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        self._pool = (base + self.page - 1) // self.page * self.page
        self._used = 0
        self.page_offset = self._pool - 16 * self.page
        self.vmemmap = self._take(VMEMMAP_PAGES)
        struct_pages = _STRUCT_PAGE * (VMEMMAP_PAGES * self.page // 64)
        ctypes.memmove(self.vmemmap, struct_pages, len(struct_pages))
        self._walk_arg = self._take()
        self.mms: list[SimMm] = []
        self.tasks: dict[int, tuple[int, SimMm]] = {}
        self.locked: set[int] = set()
        # (mm number, pfn) of entries that a second walk visited and did not restore, and of those
        # that it passed over.
        self.seen: set[tuple[int, int]] = set()
        self.passed: set[tuple[int, int]] = set()
        self.next_pfn, self.next_mm, self.next_name = 1, 1, 1
        # (mm number, address) -> the number of the migration entry, which stays when it is moved.
        self.names: dict[tuple[int, int], int] = {}
        # Hooks whose next run the kernel omits, and the number of omitted runs.
        self.missing, self.missed = set[str](), 0
        # tid -> migrations that the task is in; each is a page deeper on the stack.
        self.inside = Counter[int]()
        self.tables = Tables.of(self.native.maps, layouts(self.form.page_shift))
        self.memory_end = 0  # not known
        self.oracle = Oracle(
            self.native.maps,
            self.native.programs,
            self,
            self.tables.params,
            self.tables.swap_types,
            self.tables.other_mms,
            layouts(self.form.page_shift),
            lambda: self.page_tables,
            lambda: self.memory_end,
        )
        self.tables.params.set(
            gate=1,
            max_entry_age_ns=10**10,
            page_offset=self.page_offset,
            vmemmap=self.vmemmap,
        )
        self.tables.params.set_page_format(self.page_format)
        self.tables.params.set_unhooked(() if hooks else ("first_walk", "second_walk"))
        self._offsets = synthetic_kernel(types).types

    # memory
    def _take(self, pages: int = 1) -> int:
        at = self._pool + self._used * self.page
        self._used += pages
        assert self._used <= POOL_PAGES, "the model is out of memory"
        ctypes.memset(at, 0, pages * self.page)
        return at

    def put(self, at: int, value: int, size: int = 8) -> None:
        ctypes.memmove(at, value.to_bytes(size, "little"), size)

    def get(self, at: int) -> int:
        return int.from_bytes(ctypes.string_at(at, 8), "little")

    def set_field(self, path: str, at: int, value: int, size: int = 8) -> None:
        """Write a member of a kernel object by its path."""
        found = self._offsets.resolve(path)
        assert found
        self.put(at + found.bit_offset // 8, value, size)

    def slot(self, mm: SimMm, addr: int, level: int = 1) -> int:
        """Return the address of the entry for addr at this level; make missing tables."""
        known, table = self.page_format, mm.pgd
        for lv in range(known.levels, level, -1):
            at = table + 8 * (addr >> known.shift(lv) & known.table_entries - 1)
            if not self.get(at) & 1:
                self.put(at, self.form.table(self._take() - self.page_offset))
            table = self.page_offset + known.frame_address(self.get(at))
        return table + 8 * (addr >> known.shift(level) & known.table_entries - 1)

    # tasks and mms
    def new_mm(self) -> SimMm:
        at = self._take()
        mm = SimMm(at, self._take(), self.next_mm, 1000 + self.next_mm)
        self.next_mm += 1
        self.set_mm(mm, pgd=mm.pgd, count=1, number=mm.number)
        if not self._has_ids:
            self.set_field("mm_struct.mm_users.counter", at, 1)
            mmlist = self._offsets.resolve("mm_struct.mmlist.next")
            assert mmlist
            self.set_field("mm_struct.mmlist.next", at, at + mmlist.bit_offset // 8)
        self.set_field("vm_area_struct.vm_mm", mm.vma, at)
        self.set_field("vm_area_struct.vm_end", mm.vma, 1 << 47)
        self.mms.append(mm)
        task = self._new_task(mm.tgid, mm)
        self.tasks[mm.tgid] = task, mm
        return mm

    def set_mm(self, mm: SimMm, **members: int) -> None:
        """Write members of an mm_struct: pgd, count (mm_count) and number (context.ctx_id)."""
        for member, value in members.items():
            if member != "number" or self._has_ids:
                self.set_field(_MM_MEMBERS[member], mm.at, value)

    @property
    def _has_ids(self) -> bool:
        """Whether an mm has an id that is never reused, as on x86."""
        return self._offsets.resolve(_MM_MEMBERS["number"]) is not None

    def _new_task(self, tid: int, mm: SimMm | None) -> int:
        task = self._take()
        self.set_field("task_struct.mm", task, mm.at if mm else 0)
        self.set_field("task_struct.group_leader", task, task)
        self.set_field("task_struct.tgid", task, tid, 4)
        self.set_field("task_struct.pid", task, tid, 4)
        return task

    def read(self) -> bytes:
        """Run the task iterator; return its output."""
        for task, mm in self.tasks.values():
            if mm.alive:
                context = struct.pack("<QQ", ctypes.addressof(self._seq), task)
                self.native.lib.bpf_iter__tasks(context)
        return self.native.sequence()

    _seq = ctypes.create_string_buffer(16)

    def become(self, tid: int, tgid: int | None = None) -> None:
        self.native.set("harness_pid_tgid", (tgid or tid) << 32 | tid)

    def tick(self, ns: int = 1000) -> None:
        self.now += ns
        self.native.set("harness_now", self.now)

    def fire(self, hook: str, *args: int) -> None:
        self.tick()
        if hook in self.missing:
            self.missing.discard(hook)
            self.missed += 1
            return
        self.native.programs[hook].run(*args)

    def call(self, program: str, *args: int) -> None:
        """Enter or leave a function: run its program if functions can be hooked."""
        if self.hooks:
            self.fire(program, *args)

    # pages
    def folio(self, pfn: int) -> int:
        return self.vmemmap + pfn * 64

    def lock(self, pfn: int, held: bool) -> None:
        (self.locked.add if held else self.locked.discard)(pfn)
        self.put(self.vmemmap + pfn * 64, int(held))

    def count_mapping(self, pfn: int, change: int) -> None:
        """Change the mapcount of a small folio."""
        at = self.vmemmap + pfn * 64 + _MAPCOUNT
        (mapcount,) = struct.unpack("<i", ctypes.string_at(at, 4))
        ctypes.memmove(at, struct.pack("<i", mapcount + change), 4)

    def set_page(self, pfn: int, *, references: int = 1, mapping: int = 0) -> None:
        """Write _refcount and mapping of a struct page."""
        self.put(self.vmemmap + pfn * 64 + _REFCOUNT, references, 4)
        self.put(self.vmemmap + pfn * 64 + _PAGE_MAPPING, mapping)

    def map_page(self, mm: SimMm, addr: int, pfn: int | None = None) -> int:
        if pfn is None:
            pfn, self.next_pfn = self.next_pfn, self.next_pfn + 1
        self.count_mapping(pfn, 1)
        self.put(self.slot(mm, addr), self.form.page(pfn))
        mm.entries[addr] = pfn
        mm.migrating.discard(addr)
        return pfn

    def _name(self, mm: SimMm, addr: int) -> None:
        self.names[mm.number, addr] = self.next_name
        self.next_name += 1

    # migrations
    def start(self, tid: int) -> SimMigration:
        self._enter(tid)
        self.fire("mm_migrate_pages_start", 2, 0)
        return SimMigration(tid)

    def _enter(self, tid: int) -> None:
        self.become(tid)
        self.native.set("harness_stack", STACK - self.inside[tid] * self.page)
        self.inside[tid] += 1

    def unmap_folio(self, migration: SimMigration, pfn: int, kind: int = MIGRATION_WRITE) -> None:
        """try_to_migrate(): replace every mapping of the page by a migration entry.

        The page stays locked.
        """
        self.become(migration.tid)
        self.lock(pfn, True)
        migration.pfns.append(pfn)
        self.call("empty_folio", self.folio(pfn), 0)
        for mm in self.mms:
            for addr in [a for a, p in mm.entries.items() if p == pfn and a not in mm.migrating]:
                entry = self.form.swap(kind, pfn, 1)
                self.call("first_walk", self.folio(pfn), mm.vma, addr)
                self.put(self.slot(mm, addr), entry)
                mm.migrating.add(addr)
                self._name(mm, addr)
                self.fire("set_migration_pte", addr, entry, 0)
                self.count_mapping(pfn, -1)
                self.call("first_walk_leave")
        self.call("empty_folio_leave", self.folio(pfn), 0)

    def visit(self, mm: SimMm, addr: int, src: int, dst: int) -> None:
        """Enter remove_migration_pte(); struct rmap_walk_arg is on its caller's stack."""
        self.put(self._walk_arg + 8, self.folio(src))
        self.call("second_walk", self.folio(dst), mm.vma, addr, self._walk_arg)

    def remap_folio(
        self,
        migration: SimMigration,
        pfn: int,
        skip: int = 0,
        backwards: bool = False,
        blind: int = 0,
        seen: bool = True,
    ) -> list[tuple[SimMm, int]]:
        """remove_migration_ptes(): the second walk; it misses the last `skip` entries.

        The page is unlocked.

        blind: this many of those before are visited and not restored. seen: whether the kernel runs
        the tracepoint's program. backwards: children before their parents, as when a parent's VMA
        left the tree and came back after the fork.
        """
        self.become(migration.tid)
        new, self.next_pfn = self.next_pfn, self.next_pfn + 1
        self.lock(new, True)
        places = [(mm, a) for mm in self.mms for a in sorted(mm.migrating) if mm.entries[a] == pfn]
        if backwards:
            places.reverse()
        missed = places[len(places) - skip :]
        self.passed |= {(mm.number, pfn) for mm, _ in missed}
        for n, (mm, addr) in enumerate(places[: len(places) - skip]):
            self.visit(mm, addr, pfn, new)
            if n + blind >= len(places) - skip:
                self.seen.add((mm.number, pfn))
                self.call("second_walk_leave")
                continue
            self.put(self.slot(mm, addr), self.form.page(new))
            self.count_mapping(new, 1)
            mm.entries[addr] = new
            mm.migrating.discard(addr)
            if seen:
                self.fire("remove_migration_pte", addr, self.form.page(new), 0)
            self.call("second_walk_leave")
        self.lock(pfn, False)
        self.lock(new, False)
        migration.pfns.remove(pfn)
        return missed

    def start_split(self, tid: int) -> SimMigration:
        """Enter split_huge_page_to_list_to_order()."""
        self._enter(tid)
        self.call("thp_split", 0, 0, 0)
        return SimMigration(tid)

    def end_split(self, split: SimMigration) -> None:
        self.become(split.tid)
        self.inside[split.tid] -= 1
        self.call("thp_split_leave", 0, 0, 0, 0)

    def map_huge(self, mm: SimMm, addr: int, pfn: int) -> None:
        self.put(self.slot(mm, addr, level=2), self.form.huge(pfn))

    def freeze(
        self,
        split: SimMigration,
        mm: SimMm,
        addr: int,
        pfn: int,
        kind: int = MIGRATION_WRITE,
        gives_up: bool = False,
    ) -> None:
        """Split a THP: a migration entry for each page and no tracepoint.

        try_to_migrate_one() of the split calls __split_huge_pmd_locked().

        gives_up: the page may be pinned, and the PMD is split into entries that are present.
        """
        self.become(split.tid)
        self.call("first_walk", self.folio(pfn), mm.vma, addr)
        self.call("freeze", mm.vma, 0, addr, 1)
        self.put(self.slot(mm, addr, level=2), 0)
        for n in range(self.page_format.table_entries):
            self.put(
                self.slot(mm, addr + n * self.page),
                self.form.page(pfn + n) if gives_up else self.form.swap(kind, pfn + n),
            )
        self.call("freeze_leave", mm.vma, 0, addr, 1)
        self.call("first_walk_leave")

    def thaw(
        self, split: SimMigration, mm: SimMm, addr: int, pfn: int, how: str = "restored"
    ) -> None:
        """remove_migration_pte() of one page of a THP that was split.

        how: restored, zeroed (no tracepoint), ignored.
        """
        self.become(split.tid)
        self.visit(mm, addr, pfn, pfn)
        if how != "ignored":
            self.put(
                self.slot(mm, addr),
                self.form.page(pfn) if how == "restored" else self.form.special(2),
            )
        if how == "restored":
            self.fire("remove_migration_pte", addr, self.form.page(pfn), 0)
        self.call("second_walk_leave")

    def end(self, migration: SimMigration, *, seen: bool = True) -> None:
        """End a migration.

        seen: whether the kernel runs the hook; it may omit runs (prog->active, lazy preemption).
        """
        self.become(migration.tid)
        self.inside[migration.tid] -= 1
        if seen:
            self.fire("mm_migrate_pages", 0, 0, 0, 0, 0, 0, 2, 0)

    # other tasks meanwhile
    def zap(self, mm: SimMm, addr: int) -> None:
        self.put(self.slot(mm, addr), 0)
        if addr not in mm.migrating:
            self.count_mapping(mm.entries[addr], -1)
        mm.entries.pop(addr)
        mm.migrating.discard(addr)

    def move(self, mm: SimMm, addr: int, to: int) -> None:
        """move_ptes(): the entry as it is, migration entries too, at another address."""
        self.put(self.slot(mm, to), self.get(self.slot(mm, addr)))
        mm.entries[to] = mm.entries[addr]
        if addr not in mm.migrating:
            self.count_mapping(mm.entries[addr], 1)
        else:
            mm.migrating.add(to)
            self.names[mm.number, to] = self.names[mm.number, addr]
        self.zap(mm, addr)

    def lock_mm(self, mm: SimMm, write: bool = True) -> None:
        if self.mmap_lock:
            self.fire("mmap_lock_acquire_returned", mm.at, int(write), 1)

    def unlock_mm(self, mm: SimMm, write: bool = True) -> None:
        if self.mmap_lock:
            self.fire("mmap_lock_released", mm.at, int(write))

    def begin_fork(self, parent: SimMm) -> SimMm:
        self.become(parent.tgid)
        child = self.new_mm()
        self.tasks.pop(child.tgid)  # not in the task list before copy_process() ends
        self.mms.remove(child)
        self.lock_mm(parent)
        self.call("fork", parent.at, child.at)
        self.lock_mm(child)
        return child

    def copy_page(self, parent: SimMm, child: SimMm, addr: int) -> None:
        """copy_nonpresent_pte(): a writable migration entry becomes a readable one in both.

        On one left behind the kernel hits its BUG.
        """
        if addr not in parent.entries or (
            addr in parent.migrating and parent.entries[addr] not in self.locked
        ):
            return
        if child not in self.mms:
            self.mms.append(child)  # its VMA is in the rmap trees before its page tables are filled
        if addr in parent.migrating:
            entry = self.form.swap(MIGRATION_READ, parent.entries[addr])
            self.put(self.slot(parent, addr), entry)
            self.put(self.slot(child, addr), entry)
            child.migrating.add(addr)
            self._name(child, addr)
        else:
            self.put(self.slot(child, addr), self.get(self.slot(parent, addr)))
            self.count_mapping(parent.entries[addr], 1)
        child.entries[addr] = parent.entries[addr]

    def end_fork(self, parent: SimMm, child: SimMm) -> None:
        self.become(parent.tgid)
        self.unlock_mm(child)
        self.unlock_mm(parent)
        self.call("fork_end")
        if child not in self.mms:
            self.mms.append(child)
        self.tasks[child.tgid] = self._new_task(child.tgid, child), child

    def exit(self, mm: SimMm) -> None:
        """do_exit() and exit_mmap() of the last task."""
        task = self.tasks.pop(mm.tgid)[0]
        self.become(mm.tgid)
        self.fire("sched_process_exit", task, 1)
        for addr in list(mm.entries):
            self.zap(mm, addr)
        self.fire("exit_mmap", mm.at)
        mm.alive = False
        self.set_mm(mm, count=0)
        self.mms.remove(mm)

    def reuse(self, mm: SimMm) -> None:
        """Let a task have a new mm at the address and with the tables of one that exited."""
        self.set_mm(mm, count=1)
        mm.alive = True
        self.mms.append(mm)
        self.tasks[mm.tgid] = self._new_task(mm.tgid, mm), mm

    def left_behind(self) -> set[tuple[int, int]]:
        """Return the truth: (mm number, address) of migration entries whose page is not locked."""
        return {
            (mm.number, addr)
            for mm in self.mms
            for addr in mm.migrating
            if mm.entries[addr] not in self.locked
        }
