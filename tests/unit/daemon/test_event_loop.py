"""One step of the event loop: what it does, in which order, and when it ends early."""

from __future__ import annotations

import os
import select
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from tracer.checking.stalls import Stalls
from tracer.daemon.event_loop import EventLoop

TICK_NS = 10**9
REAL_POLL = select.poll


class Log:
    """A checker, its cases and its fidelity that record what the loop does with them.

    finds: findings that reading the ring brings. The clock stands still until a test moves it.
    """

    def __init__(self, finds: list[str]) -> None:
        self.done, self.finds, self.now = list[str](), finds, 0
        self.due_ns: int | None = 0
        self.at_read = list[Callable[[], None]]()
        self.stalls, self.times = Stalls(TICK_NS), iter(list[int]())
        self.new_findings, self.cases = ["not reported yet"], dict[str, str]()

    def read_events(self, _ring: object) -> None:
        self.done.append("read")
        self.new_findings += self.finds
        if self.at_read:
            self.at_read.pop(0)()

    def clock(self) -> int:
        self.now = next(self.times, self.now)
        return self.now

    def checker(self) -> Any:
        return SimpleNamespace(
            new_findings=self.new_findings,
            read_events=self.read_events,
            work=lambda: self.done.append("work"),
            tick=lambda: self.done.append("tick"),
            doubts=dict,
            count_protocols=None,
            cover=lambda covered: self.done.append(f"cover {covered}"),
        )

    def open_cases(self) -> Any:
        return SimpleNamespace(
            due_ns=lambda: self.due_ns, scan=lambda: self.done.append("scan"), cases=self.cases
        )

    def fidelity(self) -> Any:
        return SimpleNamespace(
            doubt=lambda _doubts: None,
            look=lambda _now, _count: self.done.append("govern"),
            covered="M1",
        )


@pytest.fixture
def ring() -> Iterator[Any]:
    fd = os.eventfd(0)
    yield SimpleNamespace(fd=fd, read=list)
    os.close(fd)


def loop(log: Log, ring: Any) -> EventLoop:
    """Make a loop, and do the tick of its first step."""
    made = EventLoop(
        ring,
        log.checker(),
        log.open_cases(),
        [],
        log.fidelity(),
        stalls=log.stalls,
        beat=lambda: log.done.append("beat"),
        commit=lambda: log.done.append("commit"),
        clock=log.clock,
    )
    finds, log.finds = log.finds, []
    assert made.step() is True
    log.finds = finds
    log.done.clear()
    return made


@pytest.mark.parametrize("finds", [[], ["a violation"]])
def test_new_finding_ends_a_step_before_cases_are_worked_on(finds: list[str], ring: Any) -> None:
    log = Log(finds)
    assert loop(log, ring).step() is False
    assert log.done == ["beat", "read", *(["commit"] if finds else ["work"])]


def test_tick_that_is_due_is_done_in_spite_of_a_new_finding(ring: Any) -> None:
    """Otherwise a kernel that breaks a rule in many ways would keep the watchdog waiting."""
    log = Log(["a violation"])
    one = loop(log, ring)
    log.now += TICK_NS
    assert one.step() is True
    assert log.done == ["beat", "read", "work", "tick", "scan", "govern", "cover M1", "commit"]


def test_requested_tick_is_done_in_the_next_step(ring: Any) -> None:
    log = Log([])
    one = loop(log, ring)
    one.make_tick_due()
    assert one.step() is True
    assert one.step() is False


def test_longest_gap_between_two_ticks_is_kept(ring: Any) -> None:
    log = Log([])
    one = loop(log, ring)
    assert one.longest_gap_ns == 0, "one tick has no gap"
    for seconds in (1.0, 2.5, 1.25):
        log.now += int(seconds * TICK_NS)
        assert one.step() is True
    assert one.longest_gap_ns == 2.5 * TICK_NS


def test_time_in_a_tick_is_part_of_the_gap(ring: Any) -> None:
    """What a turn does before its tick, and the tick itself, delay the next one."""
    log = Log([])
    one = loop(log, ring)
    log.now += TICK_NS

    def slow() -> None:
        log.now += 3 * TICK_NS

    log.at_read = [slow]
    assert one.step() is True
    assert one.longest_gap_ns == 4 * TICK_NS


class Poll:
    """select.poll(), but poll() records how long it may wait and what was readable at once."""

    def __init__(self) -> None:
        self._poll = REAL_POLL()
        self.register = self._poll.register
        self.waits, self.ready = list[float](), list[int]()

    def poll(self, milliseconds: float) -> list[tuple[int, int]]:
        found = self._poll.poll(0)
        self.waits.append(milliseconds)
        self.ready += [fd for fd, _ in found]
        return found


def test_readable_descriptor_wakes_a_step(ring: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    poll = Poll()
    monkeypatch.setattr(select, "poll", lambda: poll)
    log = Log([])
    one, fd = loop(log, ring), os.eventfd(1)
    log.now, log.due_ns = -60 * TICK_NS, None  # nothing is due for a minute
    one.wake_by(fd)
    assert one.step(60) is False
    assert poll.waits[-1] == 60_000
    assert poll.ready == [fd]
    os.close(fd)


def test_settle_ends_once_no_case_is_open_and_nothing_is_outstanding(ring: Any) -> None:
    log, outstanding = Log([]), [3, 2, 0, 9]
    one = loop(log, ring)
    log.cases["open"] = "case"
    log.at_read = [lambda: None, log.cases.clear]
    one.settle(3600.0, lambda: outstanding.pop(0))
    assert (log.done.count("read"), outstanding) == (4, [9]), "two for the case, two for entries"


def test_settle_ends_when_its_time_is_over(ring: Any) -> None:
    log = Log([])
    one = loop(log, ring)

    def outstanding() -> int:
        log.now += 10**8
        return 1

    one.settle(0.45, outstanding)
    assert log.done.count("read") == 5


def test_time_without_a_step_is_a_stall(ring: Any) -> None:
    log = Log([])
    steps = loop(log, ring)
    log.now = 5 * TICK_NS
    steps.step(0)
    assert log.stalls.within(0, log.now) == 0, "the clock begins at 0, which is no look"
    log.now = 15 * TICK_NS
    steps.step(0)
    assert log.stalls.within(0, log.now) == 9 * TICK_NS


def test_stall_while_the_loop_slept_is_known_before_the_tick(ring: Any) -> None:
    """Seen on 6.16.12: the guest stood still for 33 s, and 32 entries were called too old."""
    log = Log([])
    steps = loop(log, ring)
    log.times = iter([TICK_NS, 34 * TICK_NS])
    known = list[int]()
    log.at_read = [lambda: known.append(log.stalls.within(0, 34 * TICK_NS))]
    assert steps.step(0) is True
    assert known == [32 * TICK_NS]
