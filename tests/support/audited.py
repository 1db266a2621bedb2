"""A kernel of a few mms in memory, with their trees, and the state audit run natively over it.

The maple tree, VMAs, files, anon_vmas and interval trees are laid out by the types of
btf_blob.kernel_types(). Every shape is drawn from a random.Random.
"""

from __future__ import annotations

import ctypes
import mmap
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from random import Random
from types import SimpleNamespace
from typing import Any

from tests.support import maple_tree
from tests.support.maple_tree import ALL, Range
from tests.support.native import LAYOUTS, Native, synthetic_kernel
from tests.support.page_formats import X86_4
from tracer.kernel.btf import Btf

PAGE = 4096
STRUCT_PAGE = 64
PRESENT = 0x67  # with _PAGE_RW, _PAGE_USER, _PAGE_ACCESSED and _PAGE_DIRTY
ISA_END_ADDRESS = 0x100000  # below, audit.bpf.c reads nothing
BLACK = 1  # rb_node.__rb_parent_color
PROBLEMS = LAYOUTS.enums["audit_problem"][:-1]
LOCKS = {name: number for number, name in enumerate(LAYOUTS.enums["audit_lock"])}
NEXT = {LAYOUTS.constants[name]: name for name in LAYOUTS.enums["audit_next"]}
WRITERS = LAYOUTS.constants["AUDIT_WRITERS"]


def names(problems: int) -> set[str]:
    """Return the names of enum audit_problem whose bits are set."""
    return {name for bit, name in enumerate(PROBLEMS) if problems >> bit & 1}


@cache
def _btf(types: bytes) -> Btf:
    return synthetic_kernel(types).types


class Memory:
    """The direct map of the kernel that is made here: words at addresses of this process."""

    def __init__(self, size: int = 4 << 20) -> None:
        self._map = mmap.mmap(-1, size)
        self.start = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        self.end, self.free = self.start + size, self.start

    def take(self, size: int, align: int = 64) -> int:
        at = (self.free + align - 1) // align * align
        self.free = at + size
        assert self.free <= self.end
        return at

    def node(self, size: int) -> int:
        return self.take(size, 256)

    def get(self, at: int) -> int:
        assert self.start <= at <= self.end - 8
        return ctypes.c_uint64.from_address(at).value

    def put(self, at: int, value: int) -> None:
        assert self.start <= at <= self.end - 8
        ctypes.c_uint64.from_address(at).value = value & ALL

    def write(self, at: int, raw: bytes) -> None:
        assert self.start <= at <= self.end - len(raw)
        ctypes.memmove(at, raw, len(raw))

    def read(self, at: int, size: int) -> bytes | None:
        return ctypes.string_at(at, size) if self.start <= at <= self.end - size else None


@dataclass
class Interval:
    """What an interval tree is of: the rb_node of a VMA or of an anon_vma_chain."""

    rb: int
    first: int
    last: int


@dataclass
class Vma:
    at: int
    first: int
    last: int
    pgoff: int
    mapping: int = 0
    anon_vma: int = 0
    chain: list[int] = field(default_factory=list)

    @property
    def pages(self) -> int:
        return (self.last + 1 - self.first) // PAGE


class Kernel:
    """The memory, one mm with its trees, and what other mms put into those."""

    def __init__(
        self,
        types: bytes,
        random: Random,
        *,
        vmas: int,
        touching: float = 0.5,
        files: float = 0.5,
        anon: float = 0.6,
    ) -> None:
        self._btf, self.random, self.memory = _btf(types), random, Memory()
        self.mm = self.memory.take(256, 1024)
        self._vmemmap = 0
        self.tree = self.mm + self.offset("mm_struct.mm_mt")
        self.lock = self.mm + self.offset("mm_struct.mmap_lock")
        self.mappings = [self._mapping() for _ in range(3)]
        self.anon_vmas = self._anon_vmas(4)
        self.own = self._vmas(vmas, touching, files, anon)
        self.others = [self._other_vma() for _ in range(random.randint(0, 20))]
        self.rebuild()
        self.set(self.mm, "mm_struct.mm_users", 1)
        self.set(self.mm, "mm_struct.mm_count", 1)
        self.set(self.mm, "mm_struct.context.ctx_id", 77)

    def rebuild(self) -> None:
        """Build the maple tree of the VMAs in `own`, and all interval trees."""
        self.built = maple_tree.build(self.ranges(), self.tree, self.memory.node, self.random)
        self.write_tree()
        self.link()
        self.set(self.mm, "mm_struct.map_count", len(self.own), 4)

    # members
    def offset(self, path: str) -> int:
        found = self._btf.resolve(path)
        assert found, path
        return found.bit_offset // 8

    def has(self, path: str) -> bool:
        return self._btf.resolve(path) is not None

    def place(self, at: int, path: str) -> int:
        return at + self.offset(path)

    def set(self, at: int, path: str, value: int, size: int = 8) -> None:
        self.memory.write(at + self.offset(path), (value & ALL).to_bytes(8, "little")[:size])

    def get(self, at: int, path: str) -> int:
        return self.memory.get(at + self.offset(path))

    @property
    def realtime(self) -> bool:
        return self.has("rw_semaphore.rwbase")

    def count_of(self, rwsem: int) -> int:
        """Return the address of an rwsem's count."""
        return self.place(rwsem, "rw_semaphore." + ("rwbase" if self.realtime else "count"))

    @property
    def free(self) -> int:
        """The count of an rwsem that nobody holds: on PREEMPT_RT READER_BIAS."""
        return 1 << 31 if self.realtime else 0

    @property
    def writer(self) -> int:
        """The count of one that is held for write: RWSEM_WRITER_LOCKED, or WRITER_BIAS."""
        return 1 << 30 if self.realtime else 1

    @property
    def reader(self) -> int:
        """The count of one that one task holds for read."""
        return self.free + (1 if self.realtime else 256)

    # objects
    def _mapping(self) -> int:
        return self.memory.take(64)

    def _anon_vmas(self, families: int) -> list[list[int]]:
        """Make roots with their children: fork() makes an anon_vma below the parent's root."""
        found = []
        for _ in range(families):
            root = self.memory.take(64)
            family = [root, *(self.memory.take(64) for _ in range(self.random.randint(0, 3)))]
            for one in family:
                self.set(one, "anon_vma.root", root)
            found.append(family)
        return found

    def _vmas(self, count: int, touching: float, files: float, anon: float) -> list[Vma]:
        made, at = [], self.random.randint(0, 64) * PAGE
        for _ in range(count):
            if self.random.random() > touching:
                at += self.random.randint(1, 1 << self.random.randint(1, 20)) * PAGE
            pages = self.random.randint(1, 1 << self.random.randint(0, 8))
            mapping = self.random.choice(self.mappings) if self.random.random() < files else 0
            vma = self.vma(at, at + pages * PAGE - 1, mapping)
            if self.random.random() < anon:
                self.add_anon(vma)
            made.append(vma)
            at += pages * PAGE
        return made

    def _other_vma(self) -> Vma:
        """Return a VMA of another mm, in trees of ours."""
        first = self.random.randint(0, 1 << 20) * PAGE
        last = first + self.random.randint(1, 64) * PAGE - 1
        vma = self.vma(first, last, self.random.choice([0, *self.mappings]), mm=self.mm + 4096)
        self.add_anon(vma)
        return vma

    def vma(self, first: int, last: int, mapping: int = 0, mm: int = 0) -> Vma:
        at = self.memory.take(192)
        pgoff = self.random.randint(0, 64) if mapping else first // PAGE
        self.set(at, "vm_area_struct.vm_mm", mm or self.mm)
        self.set(at, "vm_area_struct.vm_start", first)
        self.set(at, "vm_area_struct.vm_end", last + 1)
        self.set(at, "vm_area_struct.vm_pgoff", pgoff)
        if self.has("vm_area_struct.__vm_anon_pgoff_lo"):
            self.set(at, "vm_area_struct.__vm_anon_pgoff_lo", first // PAGE, 4)
            self.set(at, "vm_area_struct.__vm_anon_pgoff_hi", first // PAGE >> 32, 4)
        if mapping:
            file = self.memory.take(64)
            self.set(file, "file.f_mapping", mapping)
            self.set(at, "vm_area_struct.vm_file", file)
        head = self.place(at, "vm_area_struct.anon_vma_chain")
        self.memory.put(head, head)
        self.memory.put(head + 8, head)
        return Vma(at, first, last, pgoff, mapping)

    def add_anon(self, vma: Vma) -> None:
        """Give the VMA an anon_vma and a chain: its own one and some of its ancestors."""
        family = self.random.choice(self.anon_vmas)
        linked = self.random.sample(family, self.random.randint(1, len(family)))
        vma.anon_vma = self.random.choice(linked)
        self.set(vma.at, "vm_area_struct.anon_vma", vma.anon_vma)
        for anon_vma in linked:
            chain = self.memory.take(64)
            self.set(chain, "anon_vma_chain.vma", vma.at)
            self.set(chain, "anon_vma_chain.anon_vma", anon_vma)
            vma.chain.append(chain)
        self.link_chain(vma)

    def link_chain(self, vma: Vma) -> None:
        head = self.place(vma.at, "vm_area_struct.anon_vma_chain")
        ring = [head, *(self.place(one, "anon_vma_chain.same_vma") for one in vma.chain)]
        for n, one in enumerate(ring):
            self.memory.put(one, ring[(n + 1) % len(ring)])
            self.memory.put(one + 8, ring[n - 1])

    # pages
    @property
    def page_offset(self) -> int:
        return self.memory.start - ISA_END_ADDRESS

    @property
    def vmemmap(self) -> int:
        """Return the base of the struct pages, those of the memory's own page frames."""
        if not self._vmemmap:
            frames = (self.memory.end - self.page_offset) // PAGE
            self._vmemmap = self.memory.take(frames * STRUCT_PAGE)
            self.set(self.mm, "mm_struct.pgd", self.memory.take(PAGE, PAGE))
        return self._vmemmap

    def folio(self, pfn: int) -> int:
        return self.vmemmap + pfn * STRUCT_PAGE

    def entry_at(self, addr: int, level: int = 1) -> int:
        """Return the address of the entry of an address at a level; missing tables are made."""
        assert self.vmemmap
        table = self.get(self.mm, "mm_struct.pgd")
        for above in range(4, level, -1):
            at = table + 8 * (addr >> 3 + 9 * above & 511)
            if not self.memory.get(at):
                self.memory.put(at, self.memory.take(PAGE, PAGE) - self.page_offset | PRESENT)
            table = self.page_offset + (self.memory.get(at) & ~(PAGE - 1))
        return table + 8 * (addr >> 3 + 9 * level & 511)

    def map_anon(self, vma: Vma, addr: int, pfn: int, number: int = 0, bits: int = 0) -> int:
        """Map page `number` of the anon folio of page frame `pfn`; return the entry's address."""
        at, folio = self.entry_at(addr), self.folio(pfn)
        self.memory.put(at, pfn + number << 12 | PRESENT | bits)
        self.set(folio, "folio.mapping", vma.anon_vma | 1)
        index = self.anon_pgoff(vma.at) + (addr - vma.first) // PAGE
        self.set(folio, "folio.index", index - number)
        if number:
            self.set(self.folio(pfn + number), "page.compound_head", folio + 1)
        return at

    # trees
    def ranges(self) -> list[Range]:
        return [Range(vma.at, vma.first, vma.last) for vma in self.own]

    def write_tree(self) -> None:
        self.set(self.tree, "maple_tree.ma_root", self.built.root)
        self.set(self.tree, "maple_tree.ma_flags", self.built.flags, 4)
        for at, raw in self.built.nodes.items():
            self.memory.write(at, raw)

    def check(self) -> maple_tree.Walk:
        """Check the maple tree in Python."""
        root = self.get(self.tree, "maple_tree.ma_root")
        flags = self.get(self.tree, "maple_tree.ma_flags") & 0xFFFFFFFF
        return maple_tree.check(root, flags, self.tree, lambda at: self.memory.read(at, 256))

    def anon_pgoff(self, vma: int) -> int:
        if not self.has("vm_area_struct.__vm_anon_pgoff_lo"):
            return self.get(vma, "vm_area_struct.vm_pgoff")
        low = self.get(vma, "vm_area_struct.__vm_anon_pgoff_lo") & 0xFFFFFFFF
        high = self.get(vma, "vm_area_struct.__vm_anon_pgoff_hi") & 0xFFFFFFFF
        return low | high << 32

    def intervals(self) -> dict[int, list[Interval]]:
        """Return what belongs into each interval tree, by the address of its root."""
        trees: dict[int, list[Interval]] = {}
        for vma in [*self.own, *self.others]:
            if vma.mapping:
                root = self.place(vma.mapping, "address_space.i_mmap.rb_root.rb_node")
                rb = self.place(vma.at, "vm_area_struct.shared.rb")
                one = Interval(rb, vma.pgoff, vma.pgoff + vma.pages - 1)
                trees.setdefault(root, []).append(one)
            for chain in vma.chain:
                anon_vma = self.get(chain, "anon_vma_chain.anon_vma")
                root = self.place(anon_vma, "anon_vma.rb_root.rb_root.rb_node")
                first = self.anon_pgoff(vma.at)
                rb = self.place(chain, "anon_vma_chain.rb")
                trees.setdefault(root, []).append(Interval(rb, first, first + vma.pages - 1))
        return trees

    def link(self, only: int = 0) -> None:
        """Build all interval trees, or only that of an anon_vma or mapping, of random shapes."""
        roots = (
            self.place(only, "address_space.i_mmap.rb_root.rb_node"),
            self.place(only, "anon_vma.rb_root.rb_root.rb_node"),
        )
        for root, intervals in self.intervals().items():
            if only and root not in roots:
                continue
            self.random.shuffle(intervals)
            intervals.sort(key=lambda one: one.first)
            top, _ = self._subtree(intervals, BLACK)
            self.memory.put(root, top)

    def _subtree(self, intervals: Sequence[Interval], parent: int) -> tuple[int, int]:
        """Write a subtree; return its rb_node and the end of its last interval."""
        if not intervals:
            return 0, 0
        middle = len(intervals) // 2
        if len(intervals) > 2:
            middle += self.random.choice((-1, 0, 0))
        here = intervals[middle]
        colour = self.random.choice((0, BLACK)) if parent != BLACK else 0
        left, left_last = self._subtree(intervals[:middle], here.rb)
        right, right_last = self._subtree(intervals[middle + 1 :], here.rb)
        last = max(here.last, left_last, right_last)
        for n, word in enumerate((parent | colour, right, left, last)):
            self.memory.put(here.rb + 8 * n, word)
        return here.rb, last


class Auditor:
    """Runs looks natively, as the daemon's reader does."""

    def __init__(self, kernel: Kernel, types: bytes) -> None:
        self.kernel, self.native = kernel, Native(types)
        for slot, name in enumerate(("audit_nodes", "audit_links")):
            number = struct.pack("<I", self.native.programs[name].fd)
            self.native.maps["audit_programs"].update(struct.pack("<I", slot), number)
        memory = kernel.memory
        self.bounds(kernel.page_offset, memory.end)
        self.native.set("harness_memory", memory.start)
        self.native.set("harness_memory_end", memory.end)

    def bounds(self, page_offset: int, direct_map_end: int, vmemmap: int | None = None) -> None:
        params = LAYOUTS.structs["params"]
        row = params.pack(
            page_offset=page_offset,
            direct_map_end=direct_map_end,
            vmemmap=self.kernel.vmemmap if vmemmap is None else vmemmap,
            format=X86_4.learned.members(),
        )
        self.native.maps["params"].update(bytes(4), row)

    def interfere(self, stores: Iterable[tuple[int, int, int]]) -> None:
        """Have stores made during the next look: (number of the word before which, at, value)."""
        listed = list(stores)
        rows = (ctypes.c_uint64 * (3 * 1024)).in_dll(self.native.lib, "harness_stores")
        for n, store in enumerate(listed):
            rows[3 * n : 3 * n + 3] = list(store)
        self.native.set("harness_store_count", len(listed))
        self.native.set("harness_stores_made", 0)
        self.native.set("harness_words_read", 0)

    def finish(self) -> None:
        """Make the stores that are left, after the look."""
        rows = (ctypes.c_uint64 * (3 * 1024)).in_dll(self.native.lib, "harness_stores")
        count, made = (
            ctypes.c_uint64.in_dll(self.native.lib, f"harness_{name}").value
            for name in ("store_count", "stores_made")
        )
        for n in range(made, count):
            ctypes.c_uint64.from_address(rows[3 * n + 1]).value = rows[3 * n + 2]
        self.native.set("harness_store_count", 0)

    @property
    def words_read(self) -> int:
        return ctypes.c_uint64.in_dll(self.native.lib, "harness_words_read").value

    def writes_at(self) -> int:
        """Return the address of the mm's number in audit_writes."""
        slot = self.kernel.mm >> 6 & (WRITERS - 1)
        table = self.native.lib.harness_map(b"audit_writes")
        return int(self.native.lib.harness_lookup(table, struct.pack("<I", slot)))

    def look(self, low: int = 0, high: int = ALL, most: int = 0) -> Look:
        layout, maps = LAYOUTS.structs["audit_look"], self.native.maps
        self.native.set("harness_words_read", 0)
        self.native.programs["audit_start"].run(self.kernel.mm, low, high, most)
        runs = 1
        while True:
            state = layout.unpack(maps["audit_look"].lookup(bytes(4)) or b"")
            name = NEXT[state.next]
            if name in ("AUDIT_DONE", "AUDIT_ASTRAY"):
                break
            self.native.programs[name.lower()].run()
            runs += 1
            assert runs < 10_000
        doubts = _rows(self.native, "audit_doubts", "audit_doubt", state.doubts)
        owned = _rows(self.native, "audit_owned", "audit_owned", state.owned)
        return Look(name, state, doubts, owned, runs)


def _rows(native: Native, table: str, layout: str, count: int) -> list[Any]:
    kept, rows = native.maps[table], LAYOUTS.structs[layout]
    found = (kept.lookup(struct.pack("<I", n)) for n in range(min(count, kept.max_entries)))
    return [rows.unpack(raw) for raw in found if raw]


@dataclass(frozen=True)
class Look:
    """What one look left in the maps."""

    ended: str
    state: SimpleNamespace
    doubts: list[Any]
    owned: list[Any]
    runs: int

    @property
    def undisturbed(self) -> bool:
        """Whether no task had the mmap_lock for write at any moment of the look."""
        s = self.state
        writer = s.writer_before or s.writer_after
        return not writer and s.seq_before == s.seq_after

    @property
    def problems(self) -> set[str]:
        return {name for doubt in self.doubts for name in names(doubt.problems)}

    @property
    def believed(self) -> list[Any]:
        """The doubts that this look gives reason to believe."""
        return [doubt for doubt in self.doubts if self.undisturbed and not doubt.raced]


Mutation = Callable[[Kernel], None]
