"""What a judge writes into memory that outlives it, and what another reads there: all of it, at whatever moment the first one stopped."""

from __future__ import annotations

import os
from collections import Counter

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tracer.invariants.verdict import Finding, Tally, Verdict
from tracer.supervision.checkpoint import Checkpoint, CheckpointState, Left, Memory, read
from tracer.tables.ledger import Row, Visited

HALF = 1 << 16


def finding(number: int, detail: str = "") -> Finding:
    evidence = {"entries": [{"addr": hex(number)}], "detail": detail}
    return Finding(
        "M1",
        Verdict.VIOLATED,
        "migrate_pages",
        f"kind {number}",
        "left behind",
        evidence=evidence,
        trail=({"function": "f"},),
    )


class Judge:
    """What a checkpoint sees of one: a tally, counts of protocols, places."""

    def __init__(self, memory: Memory) -> None:
        self.tally, self.protocols, self.proven = (
            Tally(),
            Counter[bytes](),
            set[tuple[str, tuple[int, int, int, int, int]]](),
        )
        self._moved: dict[bytes, int] = {}
        self.checkpoint = Checkpoint(memory, self._look, self._moved_now, lambda: self.proven)
        self.checkpoint.begin(b"what is attached")

    def _look(self) -> CheckpointState:
        checks = [(*which, count) for which, count in self.tally.checks.items()]
        return CheckpointState(
            level="full",
            checks=checks,
            violations=dict(self.tally.violations),
            entries=[(Verdict.HOLDS, len(self.proven))],
            run="run",
        )

    def _moved_now(self, every: bool) -> dict[bytes, int]:
        found, self._moved = dict(self.protocols) if every else self._moved, {}
        return found

    def count(self, number: int) -> None:
        key = bytes([number])
        self.protocols[key] += 1
        self._moved[key] = self.protocols[key]

    def is_in(self, left: Left) -> None:
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


@settings(max_examples=60, deadline=None)
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
def test_who_comes_after_knows_the_state_and_what_was_taken_since(
    steps: list[tuple[str, int]], detail: int
) -> None:
    """Through many a change of halves: a half is small here, and evidence may be long."""
    memory = Memory(HALF * 4)
    judge, taken, expected = Judge(memory), dict[tuple[str, bytes], bytes](), list[bytes]()
    judge.checkpoint.commit()
    for what, number in steps:
        if what == "find":
            judge.tally.record(finding(number, "x" * detail), float(number))
        elif what == "count":
            judge.count(number)
        elif what == "prove":
            judge.proven |= {("M1", (number, 0, 0, 0, 0))}
        elif what == "forget":
            judge.proven = {place for place in judge.proven if place[1][0] < number}
        elif what == "complete" and judge.tally.violations:
            violation = next(iter(judge.tally.violations.values()))
            violation.first = (
                msgspec.structs.replace(violation.first)
                if False
                else finding(int(violation.first.shape[5:]), "complete")
            )
        elif what == "row":
            judge.checkpoint.note_row("ledger", bytes([number]), bytes([len(taken)]))
            taken.setdefault(("ledger", bytes([number])), bytes([len(taken)]))
        elif what == "event":
            judge.checkpoint.note_event(number, b"event")
            expected.append(b"event")
        else:
            judge.checkpoint.commit()
            taken.clear()
            expected.clear()
            judge.is_in(read(memory))
        left = read(Memory(fd=os.dup(memory.fd)))
        assert {(name, key): value for name, key, value in left.rows} == taken, (
            "as they were at the last state"
        )
        assert [event for _, event in left.events] == expected
        assert left.not_kept == 0


def test_what_is_half_written_is_not_there() -> None:
    memory = Memory(HALF)
    judge = Judge(memory)
    judge.tally.record(finding(1), 1.0)
    judge.checkpoint.commit()
    before = memory._words[0]
    judge.tally.record(finding(2), 2.0)
    judge.checkpoint.commit()
    memory._words[0] = before  # it died just before it said so
    assert [v.first.shape for v in read(memory).state.violations.values()] == ["kind 1"]


def test_a_second_without_news_costs_no_room() -> None:
    memory = Memory(HALF)
    judge = Judge(memory)
    judge.tally.record(finding(1), 1.0)
    judge.checkpoint.commit()
    judge.checkpoint.commit()
    end = memory._words[0]
    for _ in range(100):
        judge.checkpoint.commit()
    assert memory._words[0] == end


def test_what_does_not_fit_is_counted() -> None:
    memory = Memory(HALF)
    judge = Judge(memory)
    for number in range(2000):
        judge.checkpoint.note_row("ledger", number.to_bytes(4, "little"), bytes(100))
    assert memory.not_kept > 0
    assert read(memory).not_kept == memory.not_kept


def test_how_much_is_in_the_store() -> None:
    memory = Memory(HALF)
    judge = Judge(memory)
    judge.tally.record(finding(1), 1.0, 5)
    judge.checkpoint.commit()
    assert read(memory).state.stored == {}
    judge.checkpoint.commit(stored=True)
    judge.tally.record(finding(1), 2.0, 2)
    judge.checkpoint.commit()
    left = read(memory).state
    assert left.stored == {finding(1).signature: 5}
    assert left.violations[finding(1).signature].count == 7


def test_a_beat_is_heard_from_another_process() -> None:
    memory = Memory(HALF)
    child = os.fork()
    if not child:
        memory._words[1] -= 10**12
        os._exit(0)
    os.waitpid(child, 0)
    assert memory.silent_seconds > 999
    memory.beat()
    assert memory.silent_seconds < 5


def test_what_no_judge_wrote_is_an_error() -> None:
    memory = Memory(HALF)
    memory.append(b"\xc1nonsense")
    with pytest.raises(msgspec.DecodeError):
        read(memory)


def test_a_state_comes_back_as_it_was_written() -> None:
    memory = Memory(1 << 20)
    visited = Visited(1 << 63, 2, 3, 4, 5, 6, 7)
    row = Row(b"k" * 32, 1, 2, 0, 0x7F0000000000, 1, 5, 1 << 63, 9, (), {1 << 63: visited})
    state = CheckpointState(
        level="full",
        entries=[(Verdict.HOLDS, 4)],
        held=[row],
        late=({"M4_LATE": 3}, {b"x\xff": 2}, 1),
    )
    checkpoint = Checkpoint(memory, lambda: state, lambda _every: {}, set)
    checkpoint.begin(b"what is attached")
    checkpoint.commit()
    found = read(memory).state
    assert (found.entries, found.held, found.late) == (state.entries, state.held, state.late)
