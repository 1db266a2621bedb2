"""What the judge has recorded, in memory that outlives it: nothing that was recorded is lost when it is killed, at whatever moment.

The memory is a memfd. A log in it has what is attached, once; the judge's state, whenever a second is over or something was found, as
what has changed; and meanwhile whatever the judge takes out of the kernel's books for good: the rows that it settles and the events that
it reads. Who comes after it begins with the state, puts those rows back, reads those events again, and goes on from there.

The log has two halves. When one is a quarter full all is written anew, to the other. A record counts from the moment that `end` is
moved past it, by one store: a judge that dies in the midst of writing has not written.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import msgspec

from tracer.bpf.maps import Map
from tracer.invariants.verdict import Finding, Verdict, Violation
from tracer.tables.ledger import Row

_HEAD = mmap.PAGESIZE
_END, _BEAT, _NOT_KEPT = range(3)  # words of the head
_LEAST = 64 << 20
_ROW_BYTES = 512  # a settled row with its key, generously


class Memory:
    """The memory itself. Sparse: of its size only what is written is there."""

    def __init__(self, half: int = _LEAST, fd: int = -1) -> None:
        self.fd = os.memfd_create("rmapd-judge") if fd < 0 else fd
        if fd < 0:
            os.ftruncate(self.fd, _HEAD + 2 * half)
        self._half = (os.fstat(self.fd).st_size - _HEAD) // 2
        self._map = mmap.mmap(self.fd, _HEAD + 2 * self._half)
        self._words = (ctypes.c_uint64 * 3).from_buffer(self._map)
        if fd < 0:
            self._words[_END] = _HEAD
            self.beat()

    @classmethod
    def for_rows(cls, rows: int) -> Memory:
        """Room for as many rows settled between two states, beside all that is found."""
        return cls(_LEAST + rows * _ROW_BYTES)

    def beat(self) -> None:
        """The judge is alive."""
        self._words[_BEAT] = time.monotonic_ns()

    @property
    def silent_seconds(self) -> float:
        """Since the last beat."""
        return (time.monotonic_ns() - self._words[_BEAT]) / 1e9

    @property
    def not_kept(self) -> int:
        """Records for which there was no room."""
        return int(self._words[_NOT_KEPT])

    def _start(self) -> int:
        return _HEAD if self._words[_END] <= _HEAD + self._half else _HEAD + self._half + 1

    @property
    def full(self) -> bool:
        """Whether it is time to write all anew."""
        return self._words[_END] - self._start() > self._half // 4

    def append(self, record: bytes) -> None:
        """Beyond the room there is it is counted, not kept."""
        end, size = self._words[_END], 4 + len(record)
        if end + size > self._start() + self._half - 1:
            self._words[_NOT_KEPT] += 1
            return
        self._map[end : end + size] = struct.pack("<I", len(record)) + record
        self._words[_END] = end + size

    def replace(self, record: bytes) -> None:
        """This instead of all that is there."""
        if 4 + len(record) > self._half - 1:
            self._words[_NOT_KEPT] += 1
            return
        old = self._start()
        new = _HEAD + self._half + 1 if old == _HEAD else _HEAD
        self._map[new : new + 4 + len(record)] = struct.pack("<I", len(record)) + record
        self._words[_END] = new + 4 + len(record)
        first = -(-old // mmap.PAGESIZE) * mmap.PAGESIZE
        self._map.madvise(
            mmap.MADV_REMOVE, first, (old + self._half - 1 - first) // mmap.PAGESIZE * mmap.PAGESIZE
        )

    def records(self) -> Iterator[bytes]:
        at, end = self._start(), self._words[_END]
        while at < end:
            (size,) = struct.unpack_from("<I", self._map, at)
            yield self._map[at + 4 : at + 4 + size]
            at += 4 + size


Proven = tuple[str, tuple[int, int, int, int, int]]
"""(invariant, place) of a violation."""


class CheckpointState(msgspec.Struct, array_like=True):
    """What is known beside the kernel's books. protocols: windows that were ruled on, by key; proven: places that a violation was found
    at. All of it, or what has changed; gone: what was proven before is forgotten. run: its name in the store; stored: how often each
    violation is counted there, by signature. entries: that were judged, by verdict; held: rows that are in a case and no longer in the
    ledger; late: LateRemovals.state."""

    attached: bytes = b""
    level: str = ""
    checks: list[tuple[str, Verdict, int]] = []
    rest: list[tuple[str, Verdict, int]] = []
    violations: dict[str, Violation] = {}
    repeats: dict[str, tuple[int, float]] = {}
    protocols: dict[bytes, int] = {}
    answers: dict[str, int] = {}
    entries: list[tuple[Verdict, int]] = []
    held: list[Row] = []
    late: tuple[dict[str, int], dict[bytes, int], int] = ({}, {}, 0)
    sweeps: int = 0
    run: str = ""
    stored: dict[str, int] = {}
    proven: list[Proven] = []
    gone: bool = False

    def add(self, change: CheckpointState) -> None:
        """Bring it up to date."""
        self.attached = change.attached or self.attached
        self.level = change.level
        self.checks, self.rest, self.answers = change.checks, change.rest, change.answers
        self.entries, self.held, self.late, self.sweeps = (
            change.entries,
            change.held,
            change.late,
            change.sweeps,
        )
        self.violations |= change.violations
        self.run = change.run or self.run
        self.stored |= change.stored
        self.protocols |= change.protocols
        self.proven = change.proven if change.gone else self.proven + change.proven
        for signature, (count, last_seen) in change.repeats.items():
            self.violations[signature].count, self.violations[signature].last_seen = (
                count,
                last_seen,
            )


class _Taken(msgspec.Struct, array_like=True):
    """A row that was settled, as it was before; or (no name) an event that was read, and where in the ring it was."""

    name: str
    key: bytes = b""
    value: bytes = b""
    at: int = 0


class _Record(msgspec.Struct, array_like=True):
    state: CheckpointState | None = None
    taken: _Taken | None = None


@dataclass
class Left:
    """What a judge has left behind. rows: (map, key, value) settled since its last state; events: (place in the ring, event)."""

    state: CheckpointState = field(default_factory=CheckpointState)
    rows: list[tuple[str, bytes, bytes]] = field(default_factory=list)
    events: list[tuple[int, bytes]] = field(default_factory=list)
    not_kept: int = 0


def read(memory: Memory) -> Left:
    """Raises msgspec.DecodeError for what no judge of this version has written."""
    left, decode = Left(not_kept=memory.not_kept), msgspec.msgpack.Decoder(_Record).decode
    for raw in memory.records():
        record = decode(raw)
        if record.state:
            left.state.add(record.state)
            left.rows.clear()
            left.events.clear()
        elif record.taken and record.taken.name:
            left.rows.append((record.taken.name, record.taken.key, record.taken.value))
        elif record.taken:
            left.events.append((record.taken.at, record.taken.value))
    return left


class Undoable(Map):
    """A map whose rows are noted, before they are changed, as they were."""

    def __init__(
        self, name: str, table: Map, note: Callable[[str, bytes, bytes], None], cpus: int
    ) -> None:
        super().__init__(
            table.fd, table.kind, table.key_size, table.value_size, table.max_entries, cpus
        )
        self._name, self._note = name, note

    def _keep(self, key: bytes) -> None:
        if (value := self.lookup(key)) is not None:
            self._note(self._name, key, value)

    def update(self, key: bytes, value: bytes) -> None:
        self._keep(key)
        super().update(key, value)

    def delete(self, key: bytes) -> bool:
        self._keep(key)
        return super().delete(key)

    def take(self, key: bytes) -> bytes | None:
        self._keep(key)
        return super().take(key)


class Checkpoint:
    """The judge's side. look: its state as it is now, without protocols and places; moved: protocols whose counts have changed since it was
    asked last, or (True) every protocol; proven: the judge's own set, which grows, or is another one."""

    def __init__(
        self,
        memory: Memory,
        look: Callable[[], CheckpointState],
        moved: Callable[[bool], dict[bytes, int]],
        proven: Callable[[], set[Proven]],
    ) -> None:
        self.memory, self._look, self._moved, self._proven = memory, look, moved, proven
        self._attached = self._last = b""
        self._stored: dict[str, int] = {}
        self._noted: set[tuple[str, bytes]] = set()
        self._violations: dict[str, tuple[Finding, int]] = {}  # as they were written
        self._places, self._of = set[Proven](), set[Proven]()
        self._encode = msgspec.msgpack.Encoder(enc_hook=_plain).encode

    def begin(self, attached: bytes) -> None:
        """attached: what runs, for who comes after."""
        self._attached = attached
        self.memory.append(self._encode(_Record(CheckpointState(attached=attached))))

    def note_row(self, name: str, key: bytes, value: bytes) -> None:
        """A row is about to be settled. Only as it was at the last state."""
        if (name, key) not in self._noted:
            self._noted.add((name, key))
            self._note(_Taken(name, key, value))

    def note_event(self, at: int, event: bytes) -> None:
        """An event is about to be taken out of the ring."""
        self._note(_Taken("", b"", event, at))

    def _note(self, taken: _Taken) -> None:
        self.memory.append(self._encode(_Record(taken=taken)))
        self._last = b""

    def commit(self, *, stored: bool = False) -> None:
        """All that was noted until now is in the state. Costs what has changed. stored: and in the store."""
        now, whole = self._look(), self.memory.full
        if stored:
            counts = {signature: violation.count for signature, violation in now.violations.items()}
            now.stored = {
                signature: count
                for signature, count in counts.items()
                if self._stored.get(signature) != count
            }
            self._stored = counts
        if whole:
            now.stored = self._stored
            now.attached = self._attached
            self._violations, self._places, self._of = {}, set(), set()
        violations, now.violations = now.violations, {}
        for signature, violation in violations.items():
            first, count = self._violations.get(signature, (None, 0))
            if first is not violation.first:
                now.violations[signature] = violation
            elif count != violation.count:
                now.repeats[signature] = violation.count, violation.last_seen
            self._violations[signature] = violation.first, violation.count
        now.protocols = self._moved(whole)
        self._add_places(now)
        record = self._encode(_Record(now))
        if whole:
            self.memory.replace(record)
        elif record != self._last:
            self.memory.append(record)
        self._noted.clear()
        self._last = record

    def _add_places(self, now: CheckpointState) -> None:
        proven = self._proven()
        if proven is self._of and len(proven) == len(self._places):
            return
        now.gone = not self._places <= proven
        now.proven = list(proven if now.gone else proven - self._places)
        self._places, self._of = set(proven), proven


def _plain(value: object) -> object:
    """Mappings and sequences of any kind, as evidence has them."""
    if isinstance(value, Mapping):
        return dict(value)
    raise NotImplementedError(type(value).__name__)
