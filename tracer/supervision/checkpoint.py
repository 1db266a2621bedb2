"""The checker's results, in memory that outlives it: a kill at any moment loses nothing recorded.

The memory is a memfd with a log. Its first record says what is attached (takeover.py). Once a
second, and after each finding, the checker appends what has changed in its state. Between two
states it logs everything that it is about to take out of the kernel's maps for good: the rows that
it settles and the events that it reads. Another process then starts with the state, puts the rows
back, reads the events again, and goes on from there.

The log has two halves. Once it has three times the size of the whole state, and a megabyte, the
whole state is written to the other half, and the memory of this one is freed. So the log takes no
more memory than the state asks for, and writing it anew costs less than the changes did. A record
counts from the moment that the word `end` moves past it, which is one store: a checker that dies
while it writes has not written.
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

_HEADER_BYTES = mmap.PAGESIZE
_END, _BEAT, _NOT_KEPT = range(3)  # words of 64 bits in the header
_MIN_HALF_BYTES = 64 << 20
_LOG_BYTES = 1 << 20
"""A shorter log is not replaced by the whole state, however small that is."""
_ROW_BYTES = 512  # an upper bound for a settled row with its key


class CheckpointMemory:
    """The memfd and its log. It is sparse: only the written part takes memory."""

    def __init__(self, half: int = _MIN_HALF_BYTES, fd: int = -1) -> None:
        """Make a memfd whose halves have `half` bytes, or map an existing one by its descriptor."""
        self.fd = os.memfd_create("rmapd-checker") if fd < 0 else fd
        if fd < 0:
            os.ftruncate(self.fd, _HEADER_BYTES + 2 * half)
        self._half = (os.fstat(self.fd).st_size - _HEADER_BYTES) // 2
        self._map = mmap.mmap(self.fd, _HEADER_BYTES + 2 * self._half)
        self._words = (ctypes.c_uint64 * 3).from_buffer(self._map)
        self._whole_bytes = 0  # of the whole state that the log begins with
        if fd < 0:
            self._words[_END] = _HEADER_BYTES
            self.beat()

    @classmethod
    def for_rows(cls, rows: int) -> CheckpointMemory:
        """Make a memory with room for this many rows settled between two states."""
        return cls(_MIN_HALF_BYTES + rows * _ROW_BYTES)

    def beat(self) -> None:
        """Record that the checker is alive now."""
        self._words[_BEAT] = time.monotonic_ns()

    @property
    def silent_seconds(self) -> float:
        """Seconds since the last beat."""
        return (time.monotonic_ns() - self._words[_BEAT]) / 1e9

    @property
    def not_kept(self) -> int:
        """The number of records that were dropped because there was no room."""
        return int(self._words[_NOT_KEPT])

    @property
    def used_bytes(self) -> int:
        """The size of the log in the current half."""
        return int(self._words[_END]) - self._start()

    def _start(self) -> int:
        first, second = _HEADER_BYTES, _HEADER_BYTES + self._half + 1
        return first if self._words[_END] <= _HEADER_BYTES + self._half else second

    @property
    def full(self) -> bool:
        """Whether the next state must be written whole, to the other half."""
        most = max(min(self._half // 4, _LOG_BYTES), 3 * self._whole_bytes)
        return self.used_bytes > min(self._half // 2, most)

    def append(self, record: bytes) -> None:
        """Append a record; where there is no room, count it in not_kept and drop it."""
        end, size = self._words[_END], 4 + len(record)
        if end + size > self._start() + self._half - 1:
            self._words[_NOT_KEPT] += 1
            return
        self._map[end : end + size] = struct.pack("<I", len(record)) + record
        self._words[_END] = end + size

    def replace(self, record: bytes) -> None:
        """Write the record to the other half, switch to it, and free the old half."""
        if 4 + len(record) > self._half - 1:
            self._words[_NOT_KEPT] += 1
            return
        old = self._start()
        new = _HEADER_BYTES + self._half + 1 if old == _HEADER_BYTES else _HEADER_BYTES
        self._map[new : new + 4 + len(record)] = struct.pack("<I", len(record)) + record
        self._words[_END] = new + 4 + len(record)
        self._whole_bytes = 4 + len(record)
        first = -(-old // mmap.PAGESIZE) * mmap.PAGESIZE
        self._map.madvise(
            mmap.MADV_REMOVE, first, (old + self._half - 1 - first) // mmap.PAGESIZE * mmap.PAGESIZE
        )

    def records(self) -> Iterator[bytes]:
        """Yield the records of the current half, oldest first."""
        at, end = self._start(), self._words[_END]
        while at < end:
            (size,) = struct.unpack_from("<I", self._map, at)
            yield self._map[at + 4 : at + 4 + size]
            at += 4 + size


Proven = tuple[str, tuple[int, int, int, int, int]]
"""The invariant of a proven violation, and the page-table entry it was found at."""


class CheckpointState(msgspec.Struct, array_like=True):
    """What the checker knows and the kernel's maps do not: the whole state, or what has changed.

    protocols: counts of windows already judged, by key. proven: entries that a violation was found
    at; proven_replaced: the earlier ones are dropped. repeats: count and last_seen of violations
    that only repeated. entries: decided migration entries by verdict. case_rows: rows that are in a
    case and no longer in the ledger. late: LateRemovals.state. run: the name of the run in the
    store. stored: how often each violation is counted there, by signature.
    """

    attached: bytes = b""
    level: str = ""
    checks: list[tuple[str, Verdict, int]] = []
    rest: list[tuple[str, Verdict, int]] = []
    violations: dict[str, Violation] = {}
    repeats: dict[str, tuple[int, float]] = {}
    protocols: dict[bytes, int] = {}
    answers: dict[str, int] = {}
    entries: list[tuple[Verdict, int]] = []
    case_rows: list[Row] = []
    late: tuple[dict[str, int], dict[bytes, int], int] = ({}, {}, 0)
    sweeps: int = 0
    run: str = ""
    stored: dict[str, int] = {}
    proven: list[Proven] = []
    proven_replaced: bool = False

    def apply(self, change: CheckpointState) -> None:
        """Bring the state up to date with a later record."""
        self.attached = change.attached or self.attached
        self.level = change.level
        self.checks, self.rest, self.answers = change.checks, change.rest, change.answers
        self.entries, self.case_rows = change.entries, change.case_rows
        self.late, self.sweeps = change.late, change.sweeps
        self.violations |= change.violations
        self.run = change.run or self.run
        self.stored |= change.stored
        self.protocols |= change.protocols
        self.proven = change.proven if change.proven_replaced else self.proven + change.proven
        for signature, (count, last_seen) in change.repeats.items():
            violation = self.violations[signature]
            violation.count, violation.last_seen = count, last_seen


class _Taken(msgspec.Struct, array_like=True):
    """A row before it is settled; or, with an empty name, an event and its position in the ring."""

    name: str
    key: bytes = b""
    value: bytes = b""
    at: int = 0


class _Record(msgspec.Struct, array_like=True):
    state: CheckpointState | None = None
    taken: _Taken | None = None


@dataclass
class Recovered:
    """What the log of a dead checker has: its last state, and what it took out of the maps since.

    rows are (map name, key, value as of the last state). events are (position in the ring, event).
    """

    state: CheckpointState = field(default_factory=CheckpointState)
    rows: list[tuple[str, bytes, bytes]] = field(default_factory=list)
    events: list[tuple[int, bytes]] = field(default_factory=list)
    not_kept: int = 0


def read(memory: CheckpointMemory) -> Recovered:
    """Read the log. Raises msgspec.DecodeError for a log of another version."""
    found, decode = Recovered(not_kept=memory.not_kept), msgspec.msgpack.Decoder(_Record).decode
    for raw in memory.records():
        record = decode(raw)
        if record.state:
            found.state.apply(record.state)
            found.rows.clear()
            found.events.clear()
        elif record.taken and record.taken.name:
            found.rows.append((record.taken.name, record.taken.key, record.taken.value))
        elif record.taken:
            found.events.append((record.taken.at, record.taken.value))
    return found


class UndoLogMap(Map):
    """A BPF map that logs the old value of a row before it changes or deletes the row."""

    def __init__(
        self, name: str, table: Map, note: Callable[[str, bytes, bytes], None], cpus: int
    ) -> None:
        """Wrap `table`; note(name, key, value) is called with each old value."""
        super().__init__(
            table.fd, table.kind, table.key_size, table.value_size, table.max_entries, cpus
        )
        self._name, self._note = name, note

    def _log(self, key: bytes) -> None:
        if (value := self.lookup(key)) is not None:
            self._note(self._name, key, value)

    def update(self, key: bytes, value: bytes) -> None:
        """Log the row, then set it."""
        self._log(key)
        super().update(key, value)

    def delete(self, key: bytes) -> bool:
        """Log the row, then delete it; return whether it was there."""
        self._log(key)
        return super().delete(key)

    def take(self, key: bytes) -> bytes | None:
        """Log the row, then delete it and return its value."""
        self._log(key)
        return super().take(key)


class Checkpoint:
    """Writes the checker's state to the log of a CheckpointMemory."""

    def __init__(self, memory: CheckpointMemory) -> None:
        self.memory = memory
        self._attached = self._last = b""
        self._stored: dict[str, int] = {}
        self._noted: set[tuple[str, bytes]] = set()
        self._violations: dict[str, tuple[Finding, int]] = {}  # as they were written
        self._written, self._written_from = set[Proven](), set[Proven]()  # the second: the object
        self._encode = msgspec.msgpack.Encoder(enc_hook=_plain).encode

    def begin(self, attached: bytes) -> None:
        """Write the first record: an encoded TakeoverRecord."""
        self._attached = attached
        self.memory.append(self._encode(_Record(CheckpointState(attached=attached))))

    def note_row(self, name: str, key: bytes, value: bytes) -> None:
        """Log a row that is about to change, once per state: the log keeps it as of that state."""
        if (name, key) not in self._noted:
            self._noted.add((name, key))
            self._note(_Taken(name, key, value))

    def note_event(self, at: int, event: bytes) -> None:
        """Log an event that is about to be taken out of the ring, with its position there."""
        self._note(_Taken("", b"", event, at))

    def _note(self, taken: _Taken) -> None:
        self.memory.append(self._encode(_Record(taken=taken)))
        self._last = b""

    def commit(
        self,
        now: CheckpointState,
        protocols: Callable[[bool], dict[bytes, int]],
        proven: set[Proven],
        *,
        stored: bool = False,
    ) -> None:
        """Write what has changed in the state; the notes made until now are part of it.

        now: the state without protocols and proven entries; it is filled in here. protocols returns
        the protocols whose counts have changed since its last call, or with True all of them.
        proven: the checker's own set, which either grows or is replaced by another object. stored:
        the store has all violations of this state.
        """
        whole = self.memory.full
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
            self._violations, self._written, self._written_from = {}, set(), set()
        violations, now.violations = now.violations, {}
        for signature, violation in violations.items():
            first, count = self._violations.get(signature, (None, 0))
            if first is not violation.first:
                now.violations[signature] = violation
            elif count != violation.count:
                now.repeats[signature] = violation.count, violation.last_seen
            self._violations[signature] = violation.first, violation.count
        now.protocols = protocols(whole)
        self._add_proven(now, proven)
        record = self._encode(_Record(now))
        if whole:
            self.memory.replace(record)
        elif record != self._last:
            self.memory.append(record)
        self._noted.clear()
        self._last = record

    def _add_proven(self, now: CheckpointState, proven: set[Proven]) -> None:
        if proven is self._written_from and len(proven) == len(self._written):
            return
        now.proven_replaced = not self._written <= proven
        now.proven = list(proven if now.proven_replaced else proven - self._written)
        self._written, self._written_from = set(proven), proven


def _plain(value: object) -> object:
    """Turn a mapping of any kind, as evidence has them, into a dict."""
    if isinstance(value, Mapping):
        return dict(value)
    raise NotImplementedError(type(value).__name__)
