"""`rmapd exec`, the supervisor's side: it starts and ends the command, and outlives the checker.

It imports little, because what it imports stays in its memory. exec.py is the checker's side.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from typing import Any

import msgspec

from tracer import atomic_file
from tracer.errors import DEFECT, TEMPORARY, RmapdError
from tracer.outcome import print_error, print_text
from tracer.process import allocator
from tracer.supervision import supervisor
from tracer.supervision.checkpoint import CheckpointMemory
from tracer.supervision.command import (
    CHECKER_DIED,
    FAILED,
    Command,
    CommandOutcome,
    NotRunnable,
    Streams,
    signal_name,
)
from tracer.supervision.exec_request import ExecRequest, minimal_report

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_WAIT_SECONDS = 0.5
_SETTLE_SECONDS = 2.0  # for the command to end, before the probes are detached


def exit_code(code: int) -> int:
    """Turn the exit code of an error into that of exec, as env(1) and timeout(1) have it.

    A temporary failure or a defect is rmapd's own failure, 125, and not the command's.
    """
    return FAILED if code in (TEMPORARY, DEFECT) else code


def run(request: ExecRequest) -> int:
    """Run the request and return the exit code (COMMANDS.md). Raises RmapdError.

    Signals are handled from here on.
    """
    allocator.return_large_blocks()
    signals = supervisor.Signals(*SIGNALS)
    for path, what in ((request.report, "the report"), (request.junit, "the JUnit file")):
        if path is not None:
            atomic_file.writable(path, what)
    streams = request.open_streams()
    rows = request.config.maps.ledger_rows + request.config.maps.frozen_rows
    memory = CheckpointMemory.for_rows(rows)
    channel, checker = supervisor.fork_checker(memory, request.config.hang_seconds)
    if checker is None:
        from tracer.daemon.exec import run_checker

        run_checker(request, memory, channel)
    return _Run(request, signals, checker, streams).until_the_end()


class _Run:
    """One run, as its supervisor sees it."""

    def __init__(
        self,
        request: ExecRequest,
        signals: supervisor.Signals,
        checker: supervisor.CheckerProcess,
        streams: Streams,
    ) -> None:
        self._request, self._signals, self._checker = request, signals, checker
        self._command = Command(request.command, request.grace, streams, request.timeout)
        self._started = self._reported = self._signalled = False

    def until_the_end(self) -> int:
        """Handle messages, signals, the timeout and deaths; return the exit code."""
        while True:
            self._checker.wait(
                [self._signals.wake_fd, *self._command.handles],
                min(_WAIT_SECONDS, self._command.seconds_left),
            )
            death = self._checker.death()
            for kind, value in self._checker.channel.received():  # a dead one may have sent some
                if kind == "error":
                    raise supervisor.decode_error(value)
                if kind == "done":
                    return int(value)
                if kind == "violated":
                    self._command.terminate(signal.SIGTERM)
                else:
                    self._start_command()
            if death:
                return self._after_death(death)
            for number in self._signals.take():
                if self._signalled or self._command.early or not self._started:
                    return self._end_at_once(number)
                self._signalled = True
                self._command.end_by_signal(number)
            self._command.end_if_over()
            if self._started and not self._reported and self._command.finished():
                self._reported = True
                self._command.close_handles()
                # Without argv, which the checker has and no message may have room for.
                outcome = msgspec.structs.replace(self._command.outcome(), argv=[])
                self._checker.channel.send("outcome", outcome)

    def _start_command(self) -> None:
        """Start the command: the gate is open."""
        try:
            self._command.start()
        except NotRunnable:
            self._checker.kill()
            self._checker.detach()
            raise
        self._started = True
        self._checker.keep_open(self._command.handles)

    def _end_at_once(self, number: int) -> int:
        """End without the checker's report: the gate never opened, or a second signal arrived."""
        self._checker.kill()
        self._command.kill()
        self._checker.detach()
        if not self._started:
            why = f"{signal_name(number)} arrived before the gate was open"
            self._write_minimal(
                self._command.outcome(128 + number, {"reason": why, "signal": signal_name(number)})
            )
        return 128 + number

    def _after_death(self, death: supervisor.Death) -> int:
        """End the command, check what is left, and report, each in a child that may die as well."""
        self._command.terminate(signal.SIGTERM)
        self._command.wait(_SETTLE_SECONDS)
        early: dict[str, Any] = death.as_json()
        early["detached"] = self._checker.detach()
        outcome = self._command.outcome(CHECKER_DIED, early)

        def reported(key: str, report: Callable[[], int]) -> bool:
            """Return whether this wrote the report; note in `early` how it ended."""
            try:
                status = self._checker.run_limited(report, self._stopped)
                failed = "it took too long" if status is None else f"it ended with {status}"
            except OSError as error:
                status, failed = None, f"it could not start: {error.strerror}"
            early[key] = "done" if status == CHECKER_DIED else failed
            return status == CHECKER_DIED

        def report_after_death() -> int:
            from tracer.daemon import exec as checker_side

            return checker_side.report_after_death(self._request, self._checker.memory, outcome)

        def report_from_log() -> int:
            from tracer.daemon import exec as checker_side

            return checker_side.report_from_log(self._request, self._checker.memory, outcome)

        try:
            if not reported("after_death", report_after_death) and not reported(
                "from_log", report_from_log
            ):
                self._write_minimal(outcome)
        except RmapdError as error:
            print_error(error)
        finally:
            self._command.kill()
            self._command.wait(self._request.grace)
        self._checker.close_all_and_exit(CHECKER_DIED)
        return CHECKER_DIED

    def _stopped(self) -> bool:
        return bool(self._signals.take())

    def _write_minimal(self, outcome: CommandOutcome) -> None:
        write_minimal(self._request, outcome)


def write_minimal(request: ExecRequest, outcome: CommandOutcome) -> None:
    """Write and print a report that has only how the run ended."""
    text = json.dumps(minimal_report(outcome, request.exit_of(outcome)), indent=1) + "\n"
    by_form = {"json": text, "ktap": "KTAP version 1\n1..0\n"}
    plain = f"rmapd: {outcome.reason}: there is nothing else to report\n"
    try:
        if request.report:
            atomic_file.write(request.report, text, "the report")
    finally:
        print_text(by_form.get(request.form, plain), "--report FILE")
