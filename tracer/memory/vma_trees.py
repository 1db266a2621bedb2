"""Looks at the trees of an mm: the maple tree, the VMAs in it, and the interval trees of these.

BPF programs that run on demand read them by value (probes/audit.bpf.c). They take no lock, cause no
fault, and follow no pointer out of the direct map. A look does not wait for writers, so what it
doubts may be an ordinary change that it met half-way. Here is what was read; what it is worth is
decided by tracer.checking.state_audit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from tracer.bpf.maps import Table
from tracer.bpf.programs import Runnable
from tracer.tables.c_structs import Layouts
from tracer.tables.mm import Mm

LAST_ADDRESS = (1 << 64) - 1
PROGRAMS = ("audit_start", "audit_nodes", "audit_links", "audit_copy")
"""The programs of the audit; the second and the third call each other."""
COUNTED = (
    "nodes",
    "leaves",
    "vmas",
    "files",
    "chain_entries",
    "climbs",
    "levels",
    "raced_climbs",
    "samples",
    "anon_pages",
    "special",
    "small_nodes",
)
"""Members of struct audit_look that count what was looked at; they add up over looks."""
_MOST_RUNS = 1 << 20
_READER_OWNED = 1  # RWSEM_READER_OWNED, kernel/locking/rwsem.c
_OWNER_FLAGS = 7  # RWSEM_OWNER_FLAGS_MASK and the bits of lockdep


@dataclass(frozen=True)
class Doubt:
    """Something that looked wrong.

    problems: names of enum audit_problem. raced: the lock that protects it had a writer. vma: 0
    for a node of the maple tree, or for the mm. at: the node, VMA, anon_vma_chain or rb_node. low,
    high: the addresses that it concerns. words: the node or the VMA as it was read. lock: a name of
    enum audit_lock: that of the interval tree, or the mmap_lock.
    """

    problems: tuple[str, ...]
    raced: bool
    vma: int
    at: int
    want: int
    got: int
    low: int
    high: int
    words: tuple[int, ...] = ()
    lock: str = "AUDIT_MMAP_LOCK"

    @property
    def leads_nowhere(self) -> bool:
        """Whether a pointer was not followed: it leads out of RAM, or the read failed."""
        return any(name.endswith("_UNREADABLE") for name in self.problems)

    @property
    def identity(self) -> tuple[tuple[str, ...], int, int, int, int]:
        """What stays the same when the same fault is met again."""
        return self.problems, self.vma, self.at, self.want, self.got


@dataclass(frozen=True)
class OwnedLock:
    """A rwsem that was owned for write when a look passed it.

    owner: the task's address. kind: a name of enum audit_lock.
    """

    lock: int
    owner: int
    kind: str
    mm: int
    vma: int


@dataclass(frozen=True)
class Look:
    """The result of one look.

    high: the last address that was looked at. counted: how many of each in COUNTED. doubts: as
    many as were kept; doubted is their number. undisturbed: no task held the mmap_lock for write
    at any moment of the look; counts_writers: a writer that came and went meanwhile would show, as
    this kernel has mm_struct.mm_lock_seq. complete: it was not led astray. alive: the mm was the
    same one, and in use, before and after it. whole: no node of the range was passed over, and no
    doubt is missing. root: ma_root. deepest, longest: the climb with the most levels, and the
    anon_vma_chain with the most entries.
    """

    low: int
    high: int
    counted: Mapping[str, int]
    doubts: tuple[Doubt, ...]
    doubted: int
    owned: tuple[OwnedLock, ...]
    undisturbed: bool
    counts_writers: bool
    complete: bool
    alive: bool
    lock_seq: int
    map_count: int
    deepest: int = 0
    longest: int = 0
    root: int = 0
    whole: bool = True


class Trees(Protocol):
    """The trees of all mms; the unit tests have some without a kernel."""

    def mms(self) -> Sequence[Mm]:
        """Return the mm of each task, once."""
        ...

    def renew_memory_end(self) -> None:
        """Take in memory that was added since: pointers into it are followed from now on."""
        ...

    def look(self, mm: Mm, low: int = 0, high: int = LAST_ADDRESS, most: int = 0) -> Look:
        """Look at the range [low, high] of an mm, and end after `most` VMAs (0: no limit)."""
        ...

    def copy(self, addresses: Sequence[int]) -> dict[int, tuple[int, ...]]:
        """Return the 32 words at each of these addresses that can be read."""
        ...


class TreeReader:
    """Runs the programs of the audit and decodes what they leave.

    mms: returns the mms of all tasks. renew_memory_end: tells the programs where RAM ends.
    """

    def __init__(
        self,
        maps: Mapping[str, Table],
        programs: Mapping[str, Runnable],
        layouts: Layouts,
        mms: Callable[[], Sequence[Mm]],
        renew_memory_end: Callable[[], None],
    ) -> None:
        self._programs, self._renew = programs, renew_memory_end
        self._look, self._doubts = maps["audit_look"], maps["audit_doubts"]
        self._owned, self._copies = maps["audit_owned"], maps["audit_copies"]
        structs = layouts.structs
        self._look_layout, self._doubt = structs["audit_look"], structs["audit_doubt"]
        self._owned_layout, self._copy = structs["audit_owned"], structs["audit_copy"]
        self._problems, self._kinds = layouts.enums["audit_problem"], layouts.enums["audit_lock"]
        self._next = {layouts.constants[name]: name for name in layouts.enums["audit_next"]}
        self._copies_a_run = layouts.constants["AUDIT_COPIES_A_RUN"]
        self._mms = mms
        self.renew_memory_end()

    def mms(self) -> Sequence[Mm]:
        """Return the mm of each task, once."""
        return self._mms()

    def renew_memory_end(self) -> None:
        """Take in memory that was added since: pointers into it are followed from now on."""
        self._renew()

    def look(self, mm: Mm, low: int = 0, high: int = LAST_ADDRESS, most: int = 0) -> Look:
        """Look at the range [low, high] of an mm, and end after `most` VMAs (0: no limit)."""
        self._programs["audit_start"].run(mm.mm, low, high, most)
        found = self._read()
        for _ in range(_MOST_RUNS):
            program = {"AUDIT_NODES": "audit_nodes", "AUDIT_LINKS": "audit_links"}.get(
                self._next[found.next]
            )
            if program is None:
                break
            self._programs[program].run()
            found = self._read()
        return self._result(mm, low, found)

    def _read(self) -> Any:
        layout = self._look_layout
        raw = self._look.lookup(bytes(4)) or bytes(layout.size)
        return layout.record._make(layout.code.unpack(raw))  # type: ignore[attr-defined]

    def _result(self, mm: Mm, low: int, found: Any) -> Look:
        writer = found.writer_before or found.writer_after
        same = (found.seq_before, found.map_count_before) == (
            found.seq_after,
            found.map_count_after,
        )
        alive = found.users_before and found.users_after and found.id_before == found.id_after
        return Look(
            low=low,
            high=found.high,
            counted={name: getattr(found, name) for name in COUNTED},
            doubts=tuple(self._read_doubts(found.doubts)),
            doubted=found.doubts,
            owned=tuple(self._read_owned(found.owned)),
            undisturbed=not writer and same,
            counts_writers=bool(found.counts_writers),
            complete=self._next[found.next] == "AUDIT_DONE",
            alive=bool(alive) and mm.id in (0, found.id_before),
            lock_seq=found.seq_after,
            map_count=found.map_count_after,
            deepest=found.deepest,
            longest=found.longest,
            root=found.root,
            whole=not found.left_out and found.doubts <= self._doubts.max_entries,
        )

    def _read_doubts(self, count: int) -> Iterable[Doubt]:
        kept, size = min(count, self._doubts.max_entries), self._doubt.size
        raw = self._doubts.prefix(kept) if kept else b""
        for at in range(0, kept * size, size):
            doubt = self._doubt.unpack(raw[at : at + size])
            yield Doubt(
                tuple(n for bit, n in enumerate(self._problems) if doubt.problems >> bit & 1),
                bool(doubt.raced),
                doubt.vma,
                doubt.at,
                doubt.want,
                doubt.got,
                doubt.low,
                doubt.high,
                tuple(doubt.words),
                self._kinds[doubt.lock],
            )

    def _read_owned(self, count: int) -> Iterable[OwnedLock]:
        kept, size = min(count, self._owned.max_entries), self._owned_layout.size
        raw = self._owned.prefix(kept) if kept else b""
        for at in range(0, kept * size, size):
            lock = self._owned_layout.unpack(raw[at : at + size])
            task = lock.owner & ~_OWNER_FLAGS
            if task and not lock.owner & _READER_OWNED:
                yield OwnedLock(lock.lock, task, self._kinds[lock.kind], lock.mm, lock.vma)

    def copy(self, addresses: Sequence[int]) -> dict[int, tuple[int, ...]]:
        """Return the 32 words at each of these addresses that can be read."""
        out: dict[int, tuple[int, ...]] = {}
        size = self._copy.size
        for start in range(0, len(addresses), self._copies.max_entries):
            part = addresses[start : start + self._copies.max_entries]
            self._copies.load(b"".join(self._copy.pack(at=at) for at in part))
            for first in range(0, len(part), self._copies_a_run):
                self._programs["audit_copy"].run(first, len(part))
            raw = self._copies.prefix(len(part))
            rows = (self._copy.unpack(raw[n * size : (n + 1) * size]) for n in range(len(part)))
            out |= {row.at: tuple(row.words) for row in rows if row.at}
        return out
