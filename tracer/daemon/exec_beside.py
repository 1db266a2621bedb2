"""`rmapd exec` beside a daemon: nothing is attached, and the report is of a span of its time.

The daemon's report of the span's beginning is subtracted from that of its end. A daemon that dies
or ends meanwhile leaves no verdict on the rest: then the report is of what it knew last, and says
so.
"""

from __future__ import annotations

import datetime
import logging
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

from tracer import atomic_file, logs
from tracer.daemon import required
from tracer.daemon.exec_report import write
from tracer.daemon.exec_supervisor import SIGNALS, write_minimal
from tracer.daemon.probes import probes_folder, read_layouts
from tracer.daemon.span_client import DaemonConnection, DaemonGone
from tracer.daemon.span_messages import Answer, Begin, Count, End, Failed, Look, Totals
from tracer.errors import RmapdError, Temporary
from tracer.invariants.verdict import Verdict
from tracer.protocol.codec import Encoding
from tracer.report.timeline import TimelineSampler
from tracer.results.difference import SpanFacts, difference, known_before
from tracer.results.json_form import iso
from tracer.results.snapshot import Snapshot
from tracer.results.wire import SnapshotCodec
from tracer.supervision import supervisor
from tracer.supervision.command import CHECKER_DIED, Command, CommandOutcome, Streams, signal_name
from tracer.supervision.exec_request import ExecRequest

_WAIT_SECONDS = 0.5
_COUNT_SECONDS = 1.0
_LOOK_SECONDS = 10.0
"""How old the last report is at most that is left when the daemon dies."""
_AFTER_SIGNAL_SECONDS = 2.0
_AUDIT_SECONDS = 60.0
"""More than the two passes of the audit may take."""


def run(
    request: ExecRequest,
    connection: DaemonConnection,
    fidelity: str | None = None,
    *,
    given: Path | None = None,
) -> int:
    """Run the request with the daemon, and return the exit code (COMMANDS.md). Raises RmapdError.

    fidelity: that was asked for; only the daemon decides on it. given: the configuration that the
    command line names.
    """
    try:
        greeting = connection.greeting
        if fidelity:
            raise RmapdError(
                f"--fidelity {fidelity} cannot be obeyed",
                why=f"the daemon that runs (pid {greeting.pid}) decides how much is probed, now"
                f" {greeting.fidelity}",
                hint="without --fidelity; or stop the daemon first",
            )
        for path, what in ((request.report, "the report"), (request.junit, "the JUnit file")):
            if path is not None:
                atomic_file.writable(path, what)
        streams = request.open_streams()
        since = datetime.datetime.fromtimestamp(greeting.since).astimezone()
        _say(
            f"exec uses the daemon that runs (pid {greeting.pid}, since"
            f" {since.isoformat(' ', 'seconds')}, fidelity {greeting.fidelity}): nothing is"
            " attached a second time"
        )
        if given:
            _say(
                f"the daemon's configuration is in force; of {given} only lock_file, require,"
                " strict, settle_seconds and the log's keys are"
            )
        return _Beside(request, connection, streams).until_the_end()
    finally:
        connection.close()


def _say(line: str) -> None:
    if logs.is_json():
        logs.always(logging.INFO, line, __file__)
    else:
        print(f"rmapd: {line}", file=sys.stderr, flush=True)


class _Beside:
    """One run, from the first request to the report."""

    def __init__(
        self, request: ExecRequest, connection: DaemonConnection, streams: Streams
    ) -> None:
        self._request, self._connection = request, connection
        self._codec = SnapshotCodec(Encoding(read_layouts(probes_folder())))
        self._signals = supervisor.Signals(*SIGNALS)
        self._command = Command(request.command, request.grace, streams, request.timeout)
        self._timeline = TimelineSampler()
        self._first: Totals | None = None
        self._before: Snapshot | None = None
        self._last: tuple[Snapshot, SpanFacts] | None = None
        self._next_count = self._next_look = 0.0
        self._found = 0
        self._ending = self._signalled = self._violated = False

    def until_the_end(self) -> int:
        """Handle answers, signals, the timeout and the daemon's death; return the exit code."""
        try:
            self._connection.send(Begin())
            self._connection.wait_longer(_AUDIT_SECONDS)
            while True:
                handles = [self._signals.wake_fd, *self._command.handles]
                seconds = min(_WAIT_SECONDS, self._command.seconds_left)
                self._connection.wait(handles, seconds)
                answer = self._connection.received()
                if answer is not None and (code := self._take(answer)) is not None:
                    return code
                for number in self._signals.take():
                    if self._command.early or self._signalled or self._before is None:
                        return self._end_at_once(number)
                    self._signalled = True
                    self._command.end_by_signal(number)
                self._command.end_if_over()
                if self._before is not None and not self._ending and not self._connection.waiting:
                    self._ask(self._before)
        except DaemonGone as gone:
            return self._daemon_gone(str(gone))
        except Exception:
            self._command.kill()  # nobody would watch it, nor wait for it
            raise

    def _take(self, answer: Answer) -> int | None:
        """Take in an answer; return the exit code if it is the last one."""
        if isinstance(answer, Failed):
            if self._before is None:
                raise Temporary("the daemon cannot report", why=answer.why, hint="its log")
            raise DaemonGone(f"the daemon cannot report: {answer.why}")
        if isinstance(answer, Totals):
            self._count(answer)
            return None
        snapshot = self._codec.decode(answer.snapshot)
        if self._before is None:
            self._begin(snapshot, answer.facts)
            return None
        self._last = snapshot, answer.facts
        if answer.stopped:
            raise DaemonGone(f"the daemon (pid {self._connection.greeting.pid}) was stopped")
        if not self._ending:
            return None
        return self._write(self._before, self._last, self._command.outcome())

    def _begin(self, snapshot: Snapshot, facts: SpanFacts) -> None:
        """Start the command: the span has begun."""
        config, invariants = self._request.config, snapshot.invariants
        required.check(config, invariants, snapshot.coverage, snapshot.oracle_reason)
        self._last, self._next_look = (snapshot, facts), time.monotonic() + _LOOK_SECONDS
        self._command.start()
        self._before = snapshot

    def _ask(self, before: Snapshot) -> None:
        """Ask what is due: the end, once the command has ended; else counts, or a report."""
        now = time.monotonic()
        if self._command.finished():
            self._command.close_handles()
            self._ending = True
            seconds = self._request.config.settle_seconds
            self._connection.send(End(seconds))
            self._connection.wait_longer(seconds + before.age_limit_seconds + _AUDIT_SECONDS)
        elif now >= self._next_look:
            self._next_look = now + _LOOK_SECONDS
            self._connection.send(Look())
        elif now >= self._next_count:
            self._next_count = now + _COUNT_SECONDS
            self._connection.send(Count())

    def _count(self, now: Totals) -> None:
        """Add a point to the timeline. A new finding is fetched at once."""
        self._first = first = self._first or now
        totals = {name: max(0, n - first.totals.get(name, 0)) for name, n in now.totals.items()}
        self._timeline.add(now.seconds - first.seconds, totals)
        if self._request.until_violation and self._before and not self._violated:
            known = self._before.total(Verdict.VIOLATED)
            self._violated = now.totals.get(Verdict.VIOLATED.value, 0) > known
            if self._violated:
                self._command.terminate(signal.SIGTERM)
        found = totals.get("violated", 0) + totals.get("suspect", 0)
        if found > self._found:
            self._found, self._next_look = found, 0.0

    def _end_at_once(self, number: int) -> int:
        """End without a report: the span has not begun, or a second signal arrived."""
        self._command.kill()
        if self._before is None:
            why = f"{signal_name(number)} arrived before the daemon was ready"
            early = {"reason": why, "signal": signal_name(number)}
            write_minimal(self._request, self._command.outcome(128 + number, early))
        return 128 + number

    def _daemon_gone(self, why: str) -> int:
        """End the command, and report what is known. There is no verdict on the rest."""
        if self._before is None or self._last is None:
            raise Temporary(
                "the daemon is gone", why=why, hint="the same again, once a daemon runs, or none"
            )
        self._command.terminate(signal.SIGTERM)
        self._command.wait(_AFTER_SIGNAL_SECONDS)
        known = iso(self._last[0].taken_seconds)
        early = {
            "reason": f"{why}; what happened after {known} has no verdict",
            "daemon": {"pid": self._connection.greeting.pid, "known_until": known},
        }
        outcome = self._command.outcome(CHECKER_DIED, early)
        try:
            return self._write(self._before, self._last, outcome)
        finally:
            self._command.kill()
            self._command.wait(self._request.grace)

    def _write(
        self, before: Snapshot, last: tuple[Snapshot, SpanFacts], outcome: CommandOutcome
    ) -> int:
        """Write the report of the span, from the last report of the daemon that is known."""
        after, facts = last
        span = difference(before, after, facts)
        config = self._request.config
        span = replace(span, required=required.required(config, span.invariants))
        self._timeline.add(span.running_seconds, _totals(span), last=True)
        known, greeting = known_before(before, span), self._connection.greeting
        keys = {
            "pid": greeting.pid,
            "since": iso(greeting.since),
            "run": after.run,
            "fidelity_lowered": facts.lowered,
            "known_before": known,
        }
        about = (
            f"by the daemon with pid {greeting.pid}, fidelity"
            f" {'lowered to ' if facts.lowered else ''}{span.fidelity}"
        )
        if known:
            about += f"; known before: {', '.join(known)}"
        return write(
            self._request, span, outcome, self._timeline, keys={"daemon": keys}, about=about
        )


def _totals(span: Snapshot) -> dict[str, int]:
    """Return the totals of a span, as the daemon counts them."""
    counters = span.counters
    return {verdict.value: span.total(verdict) for verdict in Verdict} | {
        "windows": sum(one.windows for one in span.protocols),
        "migration_entries": counters.get("ENTRIES_RECORDED", 0)
        + counters.get("ENTRIES_COPIED", 0),
    }
