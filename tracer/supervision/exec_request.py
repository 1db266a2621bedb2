"""The request of `rmapd exec`: its options, and the smallest report that still answers it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

import tracer
from tracer import atomic_file
from tracer.config import Config
from tracer.errors import VIOLATED
from tracer.supervision.command import CommandOutcome, ExitSource, Streams


@dataclass(frozen=True)
class ExecRequest:
    """The options of one run, as the command line has them (COMMANDS.md).

    violation_code is the exit code for the verdicts that fail_on names. command_code is the exit
    code where the command failed; None: the command's own. timeout is the command's time limit in
    seconds; grace is the time in seconds from a signal to SIGKILL. output is the file for what the
    command prints. until_violation: end the command once something is violated.
    """

    config: Config
    command: Sequence[str]
    report: Path | None = None
    form: str = "text"
    fail_on: str = "violated"
    junit: Path | None = None
    violation_code: int = VIOLATED
    timeout: float | None = None
    grace: float = 5.0
    output: Path | None = None
    command_code: int | None = None
    until_violation: bool = False

    def open_streams(self) -> Streams:
        """Open where the command prints to. Raises RmapdError where the file cannot be written.

        A report that a program reads has standard output for itself: the command's goes to our
        standard error then.
        """
        if self.output is not None:
            file = atomic_file.open_stream(self.output, "the command's output")
            return file, file
        return (None, None) if self.form == "text" else (2, None)

    def exit_of(self, outcome: CommandOutcome) -> Exit:
        """Return how rmapd exits after this outcome, where nothing is violated."""
        code, reason = outcome.code, outcome.reason
        if outcome.source is ExitSource.COMMAND and code and self.command_code is not None:
            code, reason = self.command_code, "the command failed (--command-exit-code)"
        return Exit(code, reason, outcome.source)


class Exit(msgspec.Struct, frozen=True):
    """The exit code of rmapd exec, why, and what it is about."""

    code: int
    reason: str
    source: ExitSource

    def as_json(self) -> dict[str, Any]:
        """Return the key `exit` of a report."""
        return {"code": self.code, "reason": self.reason, "source": self.source.value}

    def sentence(self, outcome: CommandOutcome) -> str:
        """Return how the command ended and how rmapd exits, in one line."""
        why = "" if self.source is ExitSource.COMMAND and not self.code else f": {self.reason}"
        return f"{outcome.ending}; rmapd exits with {self.code}{why}"


def minimal_report(outcome: CommandOutcome, ending: Exit) -> dict[str, Any]:
    """Make a report without any result: the version, the kernel and how the command ended."""
    head = {
        "rmapd": tracer.__version__,
        "kernel": os.uname().release,
        "invariants": {},
        "protocols": [],
        "violations": [],
    }
    return head | outcome.as_json() | {"exit": ending.as_json()}
