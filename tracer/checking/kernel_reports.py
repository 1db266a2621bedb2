"""K1: lines of the kernel's log become reports, and a report about memory management a finding.

A line reaches this module twice. /dev/kmsg has it whole, with what follows, and with a facility
that shows who wrote it: only that makes a finding. The event of the probe `complaint` is there a
moment earlier, and has the task that was running. Its trail is read when the event arrives, while
the flight recorder is frozen; the line decides later whether it is needed.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from tracer.checking.findings import Draft, Explanation
from tracer.checking.trail import Trail, Trails
from tracer.checking.verdicts import Verdicts
from tracer.invariants.kernel_reports import (
    COMPLAINTS,
    Kind,
    about_mm,
    function_of,
    kind_of,
    leads_to,
    shape_of,
)
from tracer.invariants.verdict import Finding, Verdict
from tracer.kernel.kernel_log import KernelLog, LogRecord
from tracer.kernel.symbolizer import Symbols
from tracer.printable import printable
from tracer.tables.events import Event, Events
from tracer.tables.flight_recorder import FlightRecorder
from tracer.tables.stacks import Stacks

log = logging.getLogger("rmapd")

MOST_BYTES = 16 << 10
"""The text of a report that is kept."""
QUIET_NS, LONGEST_NS = 10**9, 5 * 10**9
"""A report ends when no line has come for so long, or when it has lasted for so long."""
PARTNER_NS = 200_000_000
"""How long a line waits for its event: both are sent at the same moment, and read one by one."""
_MOST_EVENTS = 64
_MOST_BEFORE = 24
_MOST_SHAPES = 100
_EVENT_NS = 10 * 10**9


@dataclass
class _Noted:
    """An event of the probe, with what was read when it arrived."""

    event: Event
    text: str
    stack: tuple[str, ...] = ()
    trail: Trail = field(default_factory=Trail)

    def is_of(self, line: str) -> bool:
        """Whether it is the event of this line, of which it has the beginning."""
        return bool(self.text) and line.startswith(self.text)


@dataclass
class _Report:
    """A first line and what followed. kind None: user space wrote it, and it only takes its event.

    before: lines that were printed right before the first one and belong to it. began_ns, last_ns:
    of CLOCK_MONOTONIC. ended: no further line belongs to it.
    """

    kind: Kind | None
    lines: list[str]
    caller: str
    began_ns: int
    last_ns: int
    number: int
    size: int = 0
    ended: bool = False
    cut: bool = False
    noted: _Noted | None = None
    before: tuple[str, ...] = ()

    def add(self, line: str, now_ns: int) -> None:
        """Add a line; it may be the last one."""
        self.last_ns = now_ns
        self.size += len(line) + 1
        if self.size > MOST_BYTES:
            self.ended = self.cut = True
            return
        self.lines.append(line)
        self.ended = self.kind is None or self.kind.is_end(line)

    def due_ns(self, waits: bool) -> int:
        """Return when it is complete. waits: its event may still come."""
        partner = self.began_ns + (PARTNER_NS if waits and not self.noted else 0)
        if self.ended:
            return partner
        return max(partner, min(self.last_ns + QUIET_NS, self.began_ns + LONGEST_NS))


class KernelReports:
    """Reads the kernel's log and the events of the probe. Call work() when `due_ns()` has come.

    Each record of the kernel that belongs to no report is a check that holds, each report one
    check, and each record that was lost an unverifiable one. clock: CLOCK_MONOTONIC in nanoseconds.
    attached: whether the probe is.
    """

    def __init__(
        self,
        kernel_log: KernelLog,
        events: Events,
        stacks: Stacks,
        symbols: Symbols,
        trails: Trails,
        flight_recorder: FlightRecorder,
        verdicts: Verdicts,
        attached: Callable[[], bool],
        clock: Callable[[], int],
    ) -> None:
        self._log, self._events, self._stacks, self._symbols = kernel_log, events, stacks, symbols
        self._trails, self._flight_recorder, self._verdicts = trails, flight_recorder, verdicts
        self._attached, self._clock = attached, clock
        self._noted: deque[_Noted] = deque(maxlen=_MOST_EVENTS)
        self._reports: list[_Report] = []
        self._elsewhere: set[str] = set()
        self._before: deque[tuple[int, str, str]] = deque(maxlen=_MOST_BEFORE)
        self._lost, self._read_due_ns = 0, 0
        self._broken = False

    @property
    def fd(self) -> int:
        """A descriptor that is readable when work() has something to read."""
        return self._log.fd

    def due_ns(self) -> int | None:
        """Return when work() has something to do without being woken; None: nothing."""
        waits = self._attached()
        moments = [report.due_ns(waits) for report in self._reports]
        if self._read_due_ns:
            moments.append(self._read_due_ns)
        return min(moments, default=None)

    def read_event(self, event: Event, raw: bytes) -> None:
        """Take the event of a line: read its trail and its stack now, if it may be a complaint."""
        text = self._events.complaint_line(raw)
        noted, kind = _Noted(event, text), kind_of(text)
        shape = f" {shape_of(text)}"
        known = any(one.endswith(shape) for one in self._verdicts.tally.violations)
        if kind and not known:
            noted.trail = self._trail(kind, event, text)  # first: the freeze is short
            noted.stack = self._symbols.stack(self._stacks.of_event(event.stack))
        self._flight_recorder.thaw(self._clock())
        for report in self._reports:
            if not report.noted and noted.is_of(report.lines[0]):
                report.noted = noted
                return
        self._noted.append(noted)

    def _trail(self, kind: Kind, event: Event, text: str) -> Trail:
        if kind.freed:
            if not event.freed:
                return Trail(note="The mm that was freed is not known.")
            return self._trails.of_task({event.freed}, (), event.time_ns)
        if task := kind.named_task(text):
            return self._trails.of_task((), {task[1]}, event.time_ns)
        return self._trails.of_task({event.mm}, {event.tid}, event.time_ns)

    def rehearse(self) -> None:
        """Read once, to find out whether that is allowed. Raises PermissionError."""
        self._take(self._log.read(), self._clock())

    def work(self) -> None:
        """Read what there is, and decide the reports that are complete."""
        now = self._clock()
        if not self._broken and (self._log.take_wake_up() or 0 < self._read_due_ns <= now):
            self._read(now)
        self._decide(now)

    def close(self) -> None:
        """Read once more, and decide all reports."""
        if not self._broken:
            self._read(self._clock())
        self._decide(self._clock(), all_of_them=True)

    def _read(self, now: int) -> None:
        try:
            records = self._log.read()
        except OSError as error:
            self._broken, self._read_due_ns = True, 0
            log.warning("K1: the kernel's log cannot be read any more: %s", error)
            return
        self._take(records, now)

    def _take(self, records: list[LogRecord], now: int) -> None:
        holds = sum(self._is_harmless(record, now) for record in records)
        self._verdicts.add(COMPLAINTS.id, Verdict.HOLDS, holds)
        if lost := self._log.lost - self._lost:
            self._lost += lost
            self._verdicts.add(COMPLAINTS.id, Verdict.UNVERIFIABLE, lost)
        if self._log.wait_ns:
            self._read_due_ns = now + self._log.wait_ns
        else:
            self._read_due_ns = 0
            self._log.arm()

    def _is_harmless(self, record: LogRecord, now: int) -> bool:
        """Take a record into its report; return whether the kernel wrote it and it has none."""
        line = record.lines[0]
        kind = kind_of(line)
        if not record.of_kernel:
            if kind:
                self._begin(None, record, now)
            return False
        going_on = next(
            (
                report
                for report in reversed(self._reports)
                if report.kind and not report.ended and report.caller == record.caller
            ),
            None,
        )
        if kind and not (going_on and going_on.kind and going_on.kind.crash and kind.crash):
            if going_on:
                going_on.ended = True
            self._begin(kind, record, now)
            return False
        if not going_on:
            self._before += [(now, record.caller, one) for one in record.lines]
            return True
        for one in record.lines:
            if not going_on.ended:
                going_on.add(one, now)
        return False

    def _begin(self, kind: Kind | None, record: LogRecord, now: int) -> None:
        report = _Report(kind, [], record.caller, now, now, record.number)
        for line in record.lines:
            report.add(line, now)
        report.ended = kind is None or not kind.end
        if kind:
            lines = [
                one
                for at, caller, one in self._before
                if caller == record.caller and now - at < QUIET_NS
            ]
            report.before = leads_to(lines) if kind.end else ()
            self._before.clear()
        while self._noted and self._noted[0].event.time_ns < now - _EVENT_NS:
            self._noted.popleft()
        report.noted = next((one for one in self._noted if one.is_of(record.lines[0])), None)
        if report.noted:
            self._noted.remove(report.noted)
        self._reports.append(report)

    def _decide(self, now: int, *, all_of_them: bool = False) -> None:
        waits = self._attached()
        reports, self._reports = self._reports, []
        for report in reports:
            if not all_of_them and report.due_ns(waits) > now:
                self._reports.append(report)
            elif report.kind:
                self._judge(report, report.kind)

    def _judge(self, report: _Report, kind: Kind) -> None:
        shape = shape_of(report.lines[0])
        if not about_mm(kind, report.lines):
            self._verdicts.add(COMPLAINTS.id, Verdict.HOLDS)
            if shape not in self._elsewhere and len(self._elsewhere) < _MOST_SHAPES:
                self._elsewhere.add(shape)
                log.warning(
                    "the kernel complains, and not about memory management: %s",
                    printable(report.lines[0]),
                )
            return
        function = function_of(kind, report.lines)
        outline = Finding(COMPLAINTS.id, kind.verdict, function, shape, "")
        self._verdicts.record(Draft(outline, partial(_explain, report, kind)))


def _explain(report: _Report, kind: Kind) -> Explanation:
    noted, first = report.noted, report.lines[0]
    evidence: dict[str, Any] = {
        "kernel_text": [
            *report.before,
            *report.lines,
            *(["(the rest is cut off)"] if report.cut else []),
        ],
        "kind": kind.name,
        "record": report.number,
    }
    if not noted:
        note = "The task that was running is not known: no event of this line arrived."
        return Explanation(printable(first), _named(kind, first), (), evidence, Trail(note=note))
    event, task = noted.event, noted.event.task
    if mm := event.freed if kind.freed else event.mm:
        evidence["mm"] = hex(mm)
    about = _named(kind, first)
    if kind.freed:
        # Whoever drops the last reference prints it. The windows of the mm name its process.
        last = noted.trail.steps[-1]["task"] if noted.trail.steps else {}
        about = {**last, "comm": ""} if last else {}
    if about or kind.freed:
        evidence["printed_by"] = f"{printable(event.comm)}[{event.tid}]"
    return Explanation(
        printable(first), about if about or kind.freed else task, noted.stack, evidence, noted.trail
    )


def _named(kind: Kind, line: str) -> dict[str, Any]:
    found = kind.named_task(line)
    return {"pid": found[1], "comm": found[0]} if found else {}
