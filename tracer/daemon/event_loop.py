"""The loop that waits for the kernel, the open cases or the clock, and lets the checker work."""

from __future__ import annotations

import select
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from tracer.bpf.ring_buffer import RingBuffer
from tracer.checking.cases import OpenCases
from tracer.checking.checker import Checker
from tracer.checking.stalls import Stalls
from tracer.daemon.fidelity import Fidelity

TICK_SECONDS = 1.0
_COALESCE_SECONDS = 0.02
_SETTLE_STEP_SECONDS = 0.02


class Part(Protocol):
    """What works when its own time has come."""

    def due_ns(self) -> int | None:
        """Return when work() has something to do; None: nothing."""

    def work(self) -> None:
        """Do what is due."""


class EventLoop:
    """Call step() again and again, in the thread that owns the checker.

    stalls hears that the loop runs, and so does beat(); commit() keeps what the checker has found
    until now. clock is CLOCK_MONOTONIC in nanoseconds. The first step() does a tick.
    longest_gap_ns is the longest time from one tick to the next so far: TICK_SECONDS, if nothing
    ever kept the loop for longer.
    """

    def __init__(
        self,
        ring: RingBuffer,
        checker: Checker,
        open_cases: OpenCases,
        parts: Sequence[Part],
        fidelity: Fidelity,
        *,
        stalls: Stalls,
        beat: Callable[[], None],
        commit: Callable[[], None],
        clock: Callable[[], int],
    ) -> None:
        self._ring, self._checker, self._open_cases = ring, checker, open_cases
        self._parts = parts
        self._fidelity, self._clock = fidelity, clock
        self._stalls, self._beat, self._commit = stalls, beat, commit
        self._poll = select.poll()
        self._poll.register(ring.fd, select.POLLIN)
        self._next_tick_ns = clock()
        self.longest_gap_ns = 0
        self._last_tick_ns: int | None = None

    def wake_by(self, fd: int) -> None:
        """Let step() also wake up when this descriptor is readable; the caller reads it."""
        self._poll.register(fd, select.POLLIN)

    def make_tick_due(self) -> None:
        """Let the next step() do a tick."""
        self._next_tick_ns = self._clock()

    def step(self, timeout: float = TICK_SECONDS) -> bool:
        """Sleep until there is work, `timeout` seconds at most, and do it.

        Returns whether a tick was done, which happens once a second. New findings end a step early
        unless a tick is due: reading page tables for open cases may take long, and the findings
        have to be reported before.
        """
        self._beat()
        now, due = self._clock(), self._open_cases.due_ns()
        moments = [due, *(part.due_ns() for part in self._parts)]
        soonest = [moment for moment in moments if moment is not None]
        until = min(self._next_tick_ns, now + int(timeout * 1e9), *soonest)
        self._stalls.look(now)
        ready = self._poll.poll(max(0.0, (until - now) / 1e6))
        self._stalls.look(self._clock())
        if due is None and any(fd == self._ring.fd for fd, _ in ready):
            time.sleep(_COALESCE_SECONDS)  # the rest of a burst arrives: one pass over the ledger
        known = len(self._checker.new_findings)
        self._checker.read_events(self._ring.read())
        if len(self._checker.new_findings) > known and self._clock() < self._next_tick_ns:
            self._commit()
            return False
        self._checker.work()
        for part in self._parts:
            part.work()
        if self._clock() < self._next_tick_ns:
            if len(self._checker.new_findings) > known:
                self._commit()
            return False
        self._begin_tick()
        self._checker.tick()
        self._fidelity.doubt(self._checker.doubts())
        self._open_cases.scan()
        self._fidelity.look(self._clock() / 1e9, self._checker.count_protocols)
        self._checker.cover(self._fidelity.covered)  # a doubt or the governor may have changed it
        self._commit()
        return True

    def _begin_tick(self) -> None:
        now = self._clock()
        if self._last_tick_ns is not None:
            self.longest_gap_ns = max(self.longest_gap_ns, now - self._last_tick_ns)
        self._last_tick_ns, self._next_tick_ns = now, now + int(TICK_SECONDS * 1e9)

    def settle(self, seconds: float, outstanding: Callable[[], int]) -> None:
        """Step until no case is open and no entry is outstanding, for `seconds` at most."""
        end = self._clock() + int(seconds * 1e9)
        while self._clock() < end:
            self.step(_SETTLE_STEP_SECONDS)
            if not self._open_cases.cases and not outstanding():
                return

    def drain(self) -> None:
        """Read the events that are left in the ring."""
        self._checker.read_events(self._ring.read())
