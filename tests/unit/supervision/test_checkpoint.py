"""Another process reads whatever a checker has written, at whatever moment the checker stopped."""

from __future__ import annotations

import os
import struct
import time
from collections import Counter

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tracer.invariants.verdict import Finding, Tally, Verdict
from tracer.packed import pack
from tracer.supervision.checkpoint import (
    Checkpoint,
    CheckpointMemory,
    CheckpointState,
    Recovered,
    read,
)
from tracer.tables.ledger import Row, Visited

HALF = 1 << 16
END_OFFSET, BEAT_OFFSET = 0, 8
"""Words of the header: the end of the log, and the time of the last beat in nanoseconds."""


def finding(number: int, detail: str = "") -> Finding:
    evidence = {"entries": [{"addr": hex(number)}], "detail": detail}
    return Finding(
        "M1",
        Verdict.VIOLATED,
        "migrate_pages",
        f"kind {number}",
        "left behind",
        evidence=evidence,
        trail=pack(({"function": "f"},)),
    )


class FakeChecker:
    """What a checkpoint reads of a checker: a tally, counts of protocols, proven entries."""

    def __init__(self, memory: CheckpointMemory) -> None:
        self.tally, self.protocols, self.proven = (
            Tally(),
            Counter[bytes](),
            set[tuple[str, tuple[int, int, int, int, int]]](),
        )
        self._moved: dict[bytes, int] = {}
        self.checkpoint = Checkpoint(memory)
        self.checkpoint.begin(b"what is attached")

    def commit(self, *, stored: bool = False) -> None:
        checks = [(*which, count) for which, count in self.tally.checks.items()]
        state = CheckpointState(
            level="full",
            checks=checks,
            violations=dict(self.tally.violations),
            entries=[(Verdict.HOLDS, len(self.proven))],
            run="run",
        )
        self.checkpoint.commit(state, self._moved_now, self.proven, stored=stored)

    def _moved_now(self, every: bool) -> dict[bytes, int]:
        found, self._moved = dict(self.protocols) if every else self._moved, {}
        return found

    def count(self, number: int) -> None:
        key = bytes([number])
        self.protocols[key] += 1
        self._moved[key] = self.protocols[key]

    def assert_equals(self, left: Recovered) -> None:
        state = left.state
        assert state.attached == b"what is attached"
        assert {(name, verdict): count for name, verdict, count in state.checks} == dict(
            self.tally.checks
        )
        assert state.violations == self.tally.violations
        assert state.protocols == dict(self.protocols)
        assert set(state.proven) == self.proven
        assert (state.level, state.entries, state.run) == (
            "full",
            [(Verdict.HOLDS, len(self.proven))],
            "run",
        )


@settings(max_examples=60)
@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(
                ["find", "count", "prove", "forget", "row", "event", "commit", "complete"]
            ),
            st.integers(0, 40),
        )
    ),
    detail=st.integers(0, 3000),
)
def test_recovered_log_has_last_state_and_everything_taken_since(
    steps: list[tuple[str, int]], detail: int
) -> None:
    """The halves are switched often: a half is small here, and evidence may be long."""
    memory = CheckpointMemory(HALF * 4)
    checker, taken, expected = FakeChecker(memory), dict[tuple[str, bytes], bytes](), list[bytes]()
    checker.commit()
    for what, number in steps:
        if what == "find":
            checker.tally.record(finding(number, "x" * detail), float(number))
        elif what == "count":
            checker.count(number)
        elif what == "prove":
            checker.proven |= {("M1", (number, 0, 0, 0, 0))}
        elif what == "forget":
            checker.proven = {place for place in checker.proven if place[1][0] < number}
        elif what == "complete" and checker.tally.violations:
            violation = next(iter(checker.tally.violations.values()))
            violation.first = (
                msgspec.structs.replace(violation.first)
                if False
                else finding(int(violation.first.shape[5:]), "complete")
            )
        elif what == "row":
            checker.checkpoint.note_row("ledger", bytes([number]), bytes([len(taken)]))
            taken.setdefault(("ledger", bytes([number])), bytes([len(taken)]))
        elif what == "event":
            checker.checkpoint.note_event(number, b"event")
            expected.append(b"event")
        else:
            checker.commit()
            taken.clear()
            expected.clear()
            checker.assert_equals(read(memory))
        left = read(CheckpointMemory(fd=os.dup(memory.fd)))
        assert {(name, key): value for name, key, value in left.rows} == taken, (
            "as they were at the last state"
        )
        assert [event for _, event in left.events] == expected
        assert left.not_kept == 0


def test_record_written_without_moving_the_end_is_ignored() -> None:
    memory = CheckpointMemory(HALF)
    checker = FakeChecker(memory)
    checker.tally.record(finding(1), 1.0)
    checker.commit()
    before = os.pread(memory.fd, 8, END_OFFSET)
    checker.tally.record(finding(2), 2.0)
    checker.commit()
    os.pwrite(memory.fd, before, END_OFFSET)  # it died before the store that counts
    assert [v.first.shape for v in read(memory).state.violations.values()] == ["kind 1"]


def test_commit_without_changes_writes_nothing() -> None:
    memory = CheckpointMemory(HALF)
    checker = FakeChecker(memory)
    checker.tally.record(finding(1), 1.0)
    checker.commit()
    checker.commit()
    used = memory.used_bytes
    for _ in range(100):
        checker.commit()
    assert memory.used_bytes == used


def memory_of(memory: CheckpointMemory) -> int:
    """Return the bytes that the memfd takes."""
    return os.fstat(memory.fd).st_blocks * 512


def test_log_of_a_small_state_takes_a_megabyte_however_long_it_runs() -> None:
    memory = CheckpointMemory()
    checker, most = FakeChecker(memory), 0
    for _ in range(2000):
        for number in range(250):
            checker.count(number)
        checker.commit()
        most = max(most, memory_of(memory))
    assert 1 << 19 < most < 3 << 19
    checker.assert_equals(read(memory))


def test_log_takes_three_times_the_state_and_is_freed_when_replaced() -> None:
    memory = CheckpointMemory()
    checker = FakeChecker(memory)
    for number in range(1000):
        checker.tally.record(finding(number, "x" * 3000), 1.0)
    checker.commit()
    state, sizes = memory.used_bytes, list[int]()
    for _ in range(300):
        for number in range(1000):
            checker.tally.record(finding(number), 2.0)
        checker.commit()
        sizes.append(memory_of(memory))
    assert max(sizes) < 3.2 * state
    assert min(sizes[sizes.index(max(sizes)) :]) < 1.2 * state
    checker.assert_equals(read(memory))


def test_record_without_room_is_dropped_and_counted() -> None:
    memory = CheckpointMemory(HALF)
    checker = FakeChecker(memory)
    for number in range(2000):
        checker.checkpoint.note_row("ledger", number.to_bytes(4, "little"), bytes(100))
    assert memory.not_kept > 0
    assert read(memory).not_kept == memory.not_kept


def test_state_has_the_counts_that_the_store_has() -> None:
    memory = CheckpointMemory(HALF)
    checker = FakeChecker(memory)
    checker.tally.record(finding(1), 1.0, 5)
    checker.commit()
    assert read(memory).state.stored == {}
    checker.commit(stored=True)
    checker.tally.record(finding(1), 2.0, 2)
    checker.commit()
    left = read(memory).state
    assert left.stored == {finding(1).signature: 5}
    assert left.violations[finding(1).signature].count == 7


def test_beat_of_one_process_is_read_by_another() -> None:
    memory = CheckpointMemory(HALF)
    began = time.monotonic_ns()
    os.pwrite(memory.fd, struct.pack("=Q", 0), BEAT_OFFSET)
    assert memory.silent_seconds >= began / 1e9, "the last beat is as old as the clock"
    child = os.fork()
    if not child:
        try:
            memory.beat()
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert 0 <= memory.silent_seconds <= (time.monotonic_ns() - began) / 1e9


def test_log_of_another_format_raises() -> None:
    memory = CheckpointMemory(HALF)
    memory.append(b"\xc1nonsense")
    with pytest.raises(msgspec.DecodeError):
        read(memory)


def test_state_with_rows_and_late_counts_is_read_as_written() -> None:
    memory = CheckpointMemory(1 << 20)
    visited = Visited(1 << 63, 2, 3, 4, 5, 6, 7)
    row = Row(b"k" * 32, 1, 2, 0, 0x7F0000000000, 1, 5, 1 << 63, 9, (), {1 << 63: visited})
    state = CheckpointState(
        level="full",
        entries=[(Verdict.HOLDS, 4)],
        case_rows=[row],
        late=({"M4_LATE": 3}, {b"x\xff": 2}, 1),
    )
    checkpoint = Checkpoint(memory)
    checkpoint.begin(b"what is attached")
    checkpoint.commit(state, lambda _every: {}, set())
    found = read(memory).state
    assert (found.entries, found.case_rows, found.late) == (
        state.entries,
        state.case_rows,
        state.late,
    )
