"""The books that the kernel keeps, read from their maps: what is new or left over, never a stream of events."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from tracer.answer import Mm
from tracer.bpf import Table
from tracer.histogram import SLOTS, Histogram
from tracer.layout import Books as Layouts


def _key(number: int) -> bytes:
    return struct.pack("<I", number)


@dataclass(frozen=True)
class Row:
    """Entries outstanding at one address in one migration (start_ns 0: outside of migrate_pages())."""

    key: bytes
    tid: int
    tgid: int
    start_ns: int
    addr: int
    level: int
    first_ns: int
    entry: int
    count: int


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


class Books:
    """Typed access to the maps. All methods are cheap enough for once a second."""

    def __init__(self, maps: Mapping[str, Table], layouts: Layouts) -> None:
        self._maps, self._layouts = maps, layouts
        self._kinds = {layouts.constants[name]: name for name in layouts.enums["event_kind"]}

    def set_params(self, **values: int) -> None:
        """Change the named switches, keep the others."""
        params = self._layouts.structs["params"]
        now = vars(params.unpack(self._maps["params"].lookup(_key(0)) or bytes(params.size)))
        self._maps["params"].update(_key(0), params.pack(**(now | values)))

    def counters(self) -> dict[str, int]:
        """Every counter by its name in books.h, summed over the CPUs."""
        table = self._maps["counters"]
        names = self._layouts.enums["counter"][:-1]
        return {name: sum(int.from_bytes(v, "little") for v in table.per_cpu(_key(n))) for n, name in enumerate(names)}

    def histograms(self) -> dict[str, Histogram]:
        """Every histogram by its name in `enum hist`."""
        return {name: self.histogram(name) for name in self._layouts.enums["hist"][:-1]}

    def histogram(self, name: str) -> Histogram:
        """One of `enum hist`, summed over the CPUs."""
        code = struct.Struct(f"<{SLOTS}QQ")
        raw = self._maps["histograms"].per_cpu(_key(self._layouts.constants[name]))
        return Histogram.add_up([((values := code.unpack(part))[:-1], values[-1]) for part in raw])

    def entry_types(self) -> dict[int, int]:
        """Swap types that the kernel inserted as migration entries -> how often (at least)."""
        counts = (self._maps["entry_types"].lookup(_key(n)) or b"" for n in range(32))
        return {n: value for n, raw in enumerate(counts) if (value := int.from_bytes(raw, "little"))}

    def ledger(self) -> list[Row]:
        """All rows with entries outstanding; none where the migration stem is not loaded."""
        if "ledger" not in self._maps:
            return []
        key_of, row_of = self._layouts.structs["ledger_key"], self._layouts.structs["ledger_row"]
        rows = []
        for raw_key, raw_row in self._maps["ledger"].items():
            key, row = key_of.unpack(raw_key), row_of.unpack(raw_row)
            if row.count:
                found = (key.tid, row.tgid, key.start_ns, key.addr, key.level, row.first_ns, row.entry, row.count)
                rows.append(Row(raw_key, *found))
        return rows

    def settle(self, row: Row) -> bool:
        """Take a judged row out; whether it was still there."""
        return self._maps["ledger"].delete(row.key)

    def migration_start(self, tid: int) -> int | None:
        """start_ns of the migration in which the task is now; None if it is in none."""
        raw = self._maps["migrations"].lookup(_key(tid))
        return None if raw is None else int(self._layouts.structs["migration"].unpack(raw).start_ns)

    def other_mms(self) -> Iterator[Mm]:
        """Mms that no task may refer to: exiting ones, and children being forked."""
        if "dying_mms" in self._maps:
            for key, raw in self._maps["dying_mms"].items():
                dying = self._layouts.structs["dying_mm"].unpack(raw)
                yield Mm(int.from_bytes(key, "little"), dying.pgd, dying.tgid, "(exiting)", dying.id)
        windows = self._maps["fork_windows"]
        for n in range(windows.max_entries):
            window = self._layouts.structs["fork_window"].unpack(windows.lookup(_key(n)) or bytes(windows.value_size))
            if window.pgd:
                yield Mm(window.mm, window.pgd, 0, "(forked)", window.id)

    def event(self, raw: bytes) -> Event:
        e = self._layouts.structs["event"].unpack(raw)
        stacks = (e.stack, e.first_stack)
        tasks = (e.tid, e.tgid, e.first_tid, e.comm)
        return Event(self._kinds.get(e.kind, "?"), e.time_ns, e.start_ns, e.a, e.b, e.first_ns, *tasks, *stacks, e.mode, e.reason)

    def stack(self, stack: int) -> list[int]:
        """Kernel addresses, innermost first; empty where none was taken."""
        raw = self._maps["stacks"].lookup(struct.pack("<i", stack)) if stack >= 0 else None
        return [address for (address,) in struct.iter_unpack("<Q", raw or b"") if address]
