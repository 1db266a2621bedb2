"""`rmapd exec`, seen from the process that starts and ends the command and outlives the judge. Imports little: that stays in its memory."""

from __future__ import annotations

import json
import signal
import time
from typing import Any

from tracer import atomic_file
from tracer.errors import DEFECT, TEMPORARY
from tracer.supervision import supervisor
from tracer.supervision.checkpoint import Memory
from tracer.supervision.command import (
    FAILED,
    JUDGE_DIED,
    TIMED_OUT,
    Command,
    NotRunnable,
    Outcome,
    signal_name,
)
from tracer.supervision.exec_order import ExecOrder, bare

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_TURN_SECONDS = 0.5
_SETTLE_SECONDS = 2.0  # for the command, before what runs in the kernel is taken away under it


def exit_code(code: int) -> int:
    """As env(1) and timeout(1): what passes by itself, and what is a defect, is rmapd's failure here and not the command's."""
    return FAILED if code in (TEMPORARY, DEFECT) else code


def run(order: ExecOrder) -> int:
    """The exit code of the contract. Signals are taken from here on. Raises RmapdError."""
    signals = supervisor.Signals(*_SIGNALS)
    for path, what in ((order.report, "the report"), (order.junit, "the JUnit file")):
        if path is not None:
            atomic_file.writable(path, what)
    rows = order.config.maps.ledger_rows + order.config.maps.frozen_rows
    memory = Memory.for_rows(rows)
    line, watched = supervisor.fork(memory, order.config.hang_seconds)
    if watched is None:
        from tracer.daemon.exec import in_judge

        in_judge(order, memory, line)
    return _Run(order, signals, watched).until_the_end()


class _Run:
    """The supervisor's side of one run."""

    def __init__(
        self, order: ExecOrder, signals: supervisor.Signals, watched: supervisor.Watched
    ) -> None:
        self._order, self._signals, self._watched = order, signals, watched
        self._command = Command(order.command, order.grace)
        self._opened = self._told = False
        self._until = float("inf")
        self._code: int | None = None
        self._early: dict[str, Any] | None = None

    def until_the_end(self) -> int:
        while True:
            self._watched.wait(
                [self._signals.woken, *self._command.handles],
                min(_TURN_SECONDS, self._until - time.monotonic()),
            )
            death = self._watched.death()
            for kind, what in self._watched.line.heard():  # also what it said before it died
                if kind == "error":
                    raise supervisor.error_of(what)
                if kind == "done":
                    return int(what)
                self._begin()
            if death:
                return self._after(death)
            for number in self._signals.taken():
                if self._early or not self._opened:
                    return self._at_once(number)
                self._end_early(
                    number,
                    {"reason": f"{signal_name(number)} came", "signal": signal_name(number)},
                    128 + number,
                )
            if time.monotonic() >= self._until and not self._early:
                self._end_early(
                    signal.SIGTERM,
                    {"reason": f"the command's time was over (--timeout {self._order.timeout:g})"},
                    TIMED_OUT,
                )
            if self._opened and not self._told and self._command.over():
                self._told = True
                self._command.let_go()
                self._watched.line.say("outcome", self._command.outcome(self._code, self._early))

    def _begin(self) -> None:
        """The gate is open."""
        try:
            self._command.start()
        except NotRunnable:
            self._watched.kill()
            self._watched.detach()
            raise
        self._opened = True
        self._watched.keep(self._command.handles)
        if self._order.timeout is not None:
            self._until = time.monotonic() + self._order.timeout

    def _end_early(self, number: int, why: dict[str, Any], code: int) -> None:
        """The command gets the signal; what was seen is reported when it has ended, or will not."""
        if not self._command.over():  # else the run is about to end by itself
            self._early, self._code = why, code
            self._command.end(number)

    def _at_once(self, number: int) -> int:
        """Before the gate was open there is nothing to report but that; after a second signal nobody waits for a report."""
        self._watched.kill()
        self._command.kill()
        self._watched.detach()
        if not self._opened:
            why = f"{signal_name(number)} came before the gate was open"
            self._write_bare(
                self._command.outcome(128 + number, {"reason": why, "signal": signal_name(number)})
            )
        return 128 + number

    def _after(self, death: supervisor.Death) -> int:
        """The judge is dead: end the command, judge what is left, and report; each in a process that may die as well."""
        self._command.end(signal.SIGTERM)
        self._command.wait(_SETTLE_SECONDS)
        early: dict[str, Any] = death.as_json()
        early["detached"] = self._watched.detach()
        outcome = self._command.outcome(JUDGE_DIED, early)

        def judged(how: str) -> bool:
            from tracer.daemon import exec as execute

            done = self._watched.afterwards(
                lambda: getattr(execute, how)(self._order, self._watched.memory, outcome),
                self._stopped,
            )
            early[how] = (
                "done"
                if done == JUDGE_DIED
                else "it took too long"
                if done is None
                else f"it ended with {done}"
            )
            return done == JUDGE_DIED

        if not judged("after_death") and not judged("from_log"):
            self._write_bare(outcome)
        self._command.kill()
        self._command.wait(self._order.grace)
        self._watched.let_go(JUDGE_DIED)
        return JUDGE_DIED

    def _stopped(self) -> bool:
        return bool(self._signals.taken())

    def _write_bare(self, outcome: Outcome) -> None:
        """What can be said by a process that knows nothing but how the run ended."""
        text = json.dumps(bare(outcome), indent=1) + "\n"
        says = {"json": text, "ktap": "KTAP version 1\n1..0\n"}
        print(
            says.get(
                self._order.form, f"rmapd: {outcome.reason}: there is nothing else to report\n"
            ),
            end="",
            flush=True,
        )
        if self._order.report:
            atomic_file.write(self._order.report, text, "the report")
