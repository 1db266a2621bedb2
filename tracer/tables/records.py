"""The books that the kernel keeps, read from their maps: what is new or left over, never a stream of events."""

from __future__ import annotations

import contextlib
import struct
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from tracer.bpf.maps import Table
from tracer.tables.c_structs import Layouts
from tracer.tables.histogram import Histogram
from tracer.tables.mm import Mm

_PAGE, _PMD_ENTRIES = 4096, 512
_PFN_SHIFT = 9  # of a swap entry, whose offset is stored inverted: the next page's entry is smaller (probes/include/walk.h)


def _key(number: int) -> bytes:
    return struct.pack("<I", number)


@dataclass(frozen=True)
class Visited:
    """Where the first walk left an entry: the mm, the VMA as it was then, and the address at which it met the folio there.

    visits: how often the second walk came to that very address; None where it is not counted (a fork's copy, a page inside of a large
    folio). to: the folio that it brought."""

    mm: int
    entry: int
    vma: int
    vm_start: int
    vm_end: int
    folio: int
    at: int
    visits: int | None = None
    to: int = 0


@dataclass(frozen=True)
class Row:
    """Entries outstanding at one address in one migration (start_ns 0: outside of one), in however many mms. keys: their rows in the map,
    and which entry of it (-1: all); visited: what is known of the mms, by mm."""

    key: bytes
    tid: int
    tgid: int
    start_ns: int
    addr: int
    level: int
    first_ns: int
    entry: int
    count: int
    keys: tuple[tuple[bytes, int], ...] = ()
    visited: Mapping[int, Visited] = field(default_factory=dict)

    def joined(self, other: Row) -> Row:
        """The same address in another mm."""
        first = min(self.first_ns, other.first_ns)
        count, keys, visited = (
            self.count + other.count,
            self.keys + other.keys,
            {**self.visited, **other.visited},
        )
        return replace(self, first_ns=first, count=count, keys=keys, visited=visited)


@dataclass(frozen=True)
class Taken:
    """What settle() took out of the ledger: how many entries, when the last of them was inserted, and its value."""

    count: int = 0
    last_ns: int = 0
    entry: int = 0


@dataclass(frozen=True)
class Event:
    """A wake-up from the kernel; `a` and `b` mean what `kind` says (books.h)."""

    kind: str
    time_ns: int
    start_ns: int
    a: int
    b: int
    first_ns: int
    tid: int
    tgid: int
    first_tid: int
    comm: str
    stack: int
    first_stack: int
    mode: int
    reason: int
    addr: int = 0
    folio: int = 0
    cgroup: int = 0
    cgroup_name: str = ""
    held_ns: int = 0
    first_held_ns: int = 0
    last_ns: int = 0
    last_held_ns: int = 0

    @property
    def task(self) -> dict[str, Any]:
        """The task that met it, as it was then."""
        group = (
            {"cgroup": {"id": self.cgroup, "name": self.cgroup_name or "/"}} if self.cgroup else {}
        )
        return {"pid": self.tid, "tgid": self.tgid, "comm": self.comm} | group


class Records:
    """Typed access to the maps. All methods are cheap enough for once a second."""

    def __init__(self, maps: Mapping[str, Table], layouts: Layouts) -> None:
        self._maps, self._layouts = maps, layouts
        self._kinds = {layouts.constants[name]: name for name in layouts.enums["event_kind"]}

    def set_params(self, **values: int) -> None:
        """Change the named switches, keep the others."""
        params = self._layouts.structs["params"]
        now = vars(params.unpack(self._maps["params"].lookup(_key(0)) or bytes(params.size)))
        self._maps["params"].update(_key(0), params.pack(**(now | values)))

    @contextlib.contextmanager
    def change_of_hooks(self, *, windows: bool, mmap_locks: bool) -> Iterator[None]:
        """Hooks are attached and detached in here. The epoch of what they book is odd meanwhile and another one afterwards, so what began
        before or in here is not counted: its other half may not have been seen."""
        layout = self._layouts.structs["params"]
        now = layout.unpack(self._maps["params"].lookup(_key(0)) or bytes(layout.size))
        epochs = {"window_epoch": now.window_epoch} if windows else {}
        epochs |= {"mmap_epoch": now.mmap_epoch} if mmap_locks else {}
        self.set_params(**{name: epoch + 1 for name, epoch in epochs.items()})
        try:
            yield
        finally:
            if windows and "holds" in self._maps:
                for key, _ in list(self._maps["holds"].items()):
                    self._maps["holds"].delete(key)
            if mmap_locks:
                self._end_forks()
            self.set_params(**{name: epoch + 2 for name, epoch in epochs.items()})

    def _end_forks(self) -> None:
        """A fork whose end is not seen would be taken for one that goes on for ever."""
        table, layout = self._maps["fork_windows"], self._layouts.structs["fork_window"]
        for n in range(table.max_entries):
            window = layout.unpack(table.lookup(_key(n)) or bytes(layout.size))
            if window.start_ns and not window.end_ns:
                table.update(
                    _key(n),
                    layout.pack(
                        **vars(window) | {"end_ns": time.clock_gettime_ns(time.CLOCK_MONOTONIC)}
                    ),
                )

    def counters(self) -> dict[str, int]:
        """Every counter by its name in books.h, summed over the CPUs."""
        names = self._layouts.enums["counter"][:-1]
        rows = self._maps["counters"].rows(len(names))
        return {
            name: sum(struct.unpack(f"<{len(raw) // 8}Q", raw))
            for name, raw in zip(names, rows, strict=True)
        }

    def histograms(self) -> dict[str, Histogram]:
        """Every histogram by its name in `enum hist`."""
        names = self._layouts.enums["hist"][:-1]
        return dict(
            zip(
                names, map(Histogram.add_up, self._maps["histograms"].rows(len(names))), strict=True
            )
        )

    def entry_types(self) -> dict[int, int]:
        """Swap types that the kernel inserted as migration entries -> how often (at least)."""
        counts = (self._maps["entry_types"].lookup(_key(n)) or b"" for n in range(32))
        return {
            n: value for n, raw in enumerate(counts) if (value := int.from_bytes(raw, "little"))
        }

    def ledger(self) -> list[Row]:
        """All entries outstanding, by migration and address; none where the migration stem is not loaded."""
        rows: dict[bytes, Row] = {}
        for row in self._ledger_rows():
            rows[row.key] = rows[row.key].joined(row) if row.key in rows else row
        return list(rows.values())

    def _ledger_rows(self) -> Iterator[Row]:
        key_of = self._layouts.structs["ledger_key"]
        if "ledger" in self._maps:
            row_of = self._layouts.structs["ledger_row"]
            for raw_key, raw_row in self._maps["ledger"].items():
                key, row = key_of.unpack(raw_key), row_of.unpack(raw_row)
                if row.count:
                    visits = row.visits if row.vma and row.at == key.addr else None
                    yield self._row(
                        raw_key,
                        key,
                        row,
                        key.addr,
                        key.level,
                        row.entry,
                        row.count,
                        -1,
                        row.at,
                        visits,
                    )
        if "frozen" in self._maps:
            row_of = self._layouts.structs["frozen"]
            for raw_key, raw_row in self._maps["frozen"].items():
                key, row = key_of.unpack(raw_key), row_of.unpack(raw_row)
                for n in range(_PMD_ENTRIES):
                    if not row.settled[n // 64] >> n % 64 & 1:
                        addr = key.addr + n * _PAGE
                        yield self._row(
                            raw_key,
                            key,
                            row,
                            addr,
                            1,
                            row.entry - (n << _PFN_SHIFT),
                            1,
                            n,
                            addr,
                            None,
                        )

    @staticmethod
    def _row(
        raw_key: bytes,
        key: Any,
        row: Any,
        addr: int,
        level: int,
        entry: int,
        count: int,
        nth: int,
        at: int,
        visits: int | None,
    ) -> Row:
        to = getattr(row, "to", 0)
        visited = (
            {
                key.mm: Visited(
                    key.mm, entry, row.vma, row.vm_start, row.vm_end, row.folio, at, visits, to
                )
            }
            if key.mm
            else {}
        )
        name = struct.pack("<QQII", key.start_ns, addr, key.tid, level)
        found = (key.tid, row.tgid, key.start_ns, addr, level, row.first_ns, entry, count)
        return Row(name, *found, ((raw_key, nth),), visited)

    def left_of(self, row: Row) -> int:
        """How many entries of a row are outstanding now."""
        layout = self._layouts.structs["ledger_row"]
        found = (self._maps["ledger"].lookup(key) for key, nth in row.keys if nth < 0)
        frozen = [not self._is_settled(key, nth) for key, nth in row.keys if nth >= 0]
        return sum(int(layout.unpack(raw).count) for raw in found if raw) + sum(frozen)

    def _is_settled(self, key: bytes, nth: int) -> bool:
        raw = self._maps["frozen"].lookup(key)
        return raw is None or bool(
            self._layouts.structs["frozen"].unpack(raw).settled[nth // 64] >> nth % 64 & 1
        )

    def settle(self, row: Row) -> Taken:
        """Take a judged row out of the ledger. A row of no migration can grow and shrink until it is taken."""
        layout, found = self._layouts.structs["ledger_row"], Taken()
        for key, nth in row.keys:
            if nth >= 0:
                found = replace(found, count=found.count + self._settle_frozen(key, nth))
            elif raw := self._maps["ledger"].take(key):
                taken = layout.unpack(raw)
                newer = taken.last_ns > found.last_ns
                last = (taken.last_ns, taken.entry) if newer else (found.last_ns, found.entry)
                found = Taken(found.count + taken.count, *last)
        return found

    def _settle_frozen(self, key: bytes, nth: int) -> bool:
        """One entry of a frozen PMD. Its migration has ended: nobody else writes this row."""
        layout, table = self._layouts.structs["frozen"], self._maps["frozen"]
        raw = table.lookup(key)
        if raw is None or self._is_settled(key, nth):
            return False
        row = layout.unpack(raw)
        row.settled[nth // 64] |= 1 << nth % 64
        row.count -= 1
        if row.count:
            table.update(key, layout.pack(**vars(row)))
        return bool(row.count) or table.delete(key)

    def visits(self) -> int:
        """The clock of second-walk visits."""
        return (
            int.from_bytes(self._maps["visit_clock"].lookup(_key(0)) or b"", "little")
            if "visit_clock" in self._maps
            else 0
        )

    def was_visited(self, row: Row, mm: int, at: int, since: int | None) -> bool | None:
        """Whether the second walk of this row's migration visited the VMA of that mm that maps the folio at `at`.

        None: nobody can tell, for the visits are not hooked, the last visit there was another folio's, or so many came since the migration
        began (`since`: the clock of visits then) that this one may have aged out."""
        if "visits" not in self._maps or not row.visited:
            return None
        table, layout = self._maps["visits"], self._layouts.structs["visit_key"]
        raw = table.lookup(layout.pack(start_ns=row.start_ns, mm=mm, at=at, tid=row.tid))
        if raw is not None:
            folio = self._layouts.structs["visit"].unpack(raw).folio
            return (
                True
                if row.keys[0][1] >= 0 or folio in {known.folio for known in row.visited.values()}
                else None
            )
        return None if since is None or self.visits() - since > table.max_entries // 2 else False

    def was_visited_elsewhere(self, row: Row, mm: int, folio: int) -> bool:
        """Whether that walk visited the folio anywhere in that mm; a split THP is visited page by page: that tells nothing of others.
        Reads all visits: for who is about to accuse."""
        if row.keys[0][1] >= 0:
            return False
        key, value = self._layouts.structs["visit_key"], self._layouts.structs["visit"]
        whose = (row.start_ns, row.tid, mm, folio)
        for raw, visit in self._maps["visits"].items():
            at = key.unpack(raw)
            if (at.start_ns, at.tid, at.mm, value.unpack(visit).folio) == whose:
                return True
        return False

    def migration_start(self, tid: int) -> int | None:
        """start_ns of the migration in which the task is now; None if it is in none."""
        raw = self._maps["migrations"].lookup(_key(tid))
        return None if raw is None else int(self._layouts.structs["migration"].unpack(raw).start_ns)

    def other_mms(self) -> Iterator[Mm]:
        """Mms that no task may refer to: exiting ones, and children being forked."""
        if "dying_mms" in self._maps:
            for key, raw in self._maps["dying_mms"].items():
                dying = self._layouts.structs["dying_mm"].unpack(raw)
                yield Mm(
                    int.from_bytes(key, "little"), dying.pgd, dying.tgid, "(exiting)", dying.id
                )
        windows = self._maps["fork_windows"]
        for n in range(windows.max_entries):
            window = self._layouts.structs["fork_window"].unpack(
                windows.lookup(_key(n)) or bytes(windows.value_size)
            )
            if window.pgd:
                yield Mm(window.mm, window.pgd, 0, "(forked)", window.id)

    def event(self, raw: bytes) -> Event:
        e = self._layouts.structs["event"].unpack(raw)
        stacks = (e.stack, e.first_stack)
        tasks = (e.tid, e.tgid, e.first_tid, e.comm)
        return Event(
            self._kinds.get(e.kind, "?"),
            e.time_ns,
            e.start_ns,
            e.a,
            e.b,
            e.first_ns,
            *tasks,
            *stacks,
            e.mode,
            e.reason,
            e.addr,
            e.folio,
            e.cgroup,
            e.cgroup_name,
            e.held_ns,
            e.first_held_ns,
            e.last_ns,
            e.last_held_ns,
        )

    def stack(self, stack: int, book: str = "stacks") -> list[int]:
        """Kernel addresses, innermost first, of an event or (flight_stacks) of a flight; empty where none was taken."""
        if book == "stacks" and stack >= (rows := self._maps[book].max_entries):
            stack, book = stack - rows, "more_stacks"
        raw = self._maps[book].lookup(struct.pack("<i", stack)) if stack >= 0 else None
        return [address for (address,) in struct.iter_unpack("<Q", raw or b"") if address]
