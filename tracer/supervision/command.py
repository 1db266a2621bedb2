"""The command of `rmapd exec`: start it, signal it, kill it, and report how it ended.

No call blocks on the command for longer than a given time.
"""

from __future__ import annotations

import enum
import errno
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from tracer.errors import RmapdError

TIMED_OUT, CHECKER_DIED, NOT_RUNNABLE, NOT_FOUND = 124, 71, 126, 127
"""Exit codes: of timeout(1), of sysexits.h (EX_OSERR), of env(1)."""
FAILED = 125
"""rmapd failed, and not the command: the exit code of env(1) and timeout(1)."""
_AFTER_KILL_SECONDS = 1.0


class NotRunnable(RmapdError):
    """The command cannot be run: exit code 126."""

    exit_code = NOT_RUNNABLE


class NotFound(NotRunnable):
    """There is no such command: exit code 127."""

    exit_code = NOT_FOUND


class ExitSource(enum.StrEnum):
    """What an exit code of exec is about: `exit.source` of a report. A closed set, for scripts.

    COMMAND: the command's own code, also 0. REQUIRED: a required invariant was not checked at some
    time of the run. CHECKER, DAEMON: died or ended before the command did.
    """

    COMMAND = "command"
    VIOLATION = "violation"
    REQUIRED = "required"
    TIMEOUT = "timeout"
    SIGNAL = "signal"
    CHECKER = "checker"
    DAEMON = "daemon"


class CommandOutcome(msgspec.Struct, frozen=True):
    """How a run ended.

    exit_code is the command's, as a shell reports it (128 plus the signal); it is None while the
    command runs. signal: the name of the signal that killed the command. early has the reason where
    rmapd ended the run before the command ended by itself; its key `daemon` is there where the
    daemon that watched is gone. code is rmapd's exit code where nothing is violated.
    """

    argv: list[str]
    exit_code: int | None
    ended: str
    code: int
    early: dict[str, Any] | None = None
    signal: str = ""

    @property
    def reason(self) -> str:
        """Explain the exit code."""
        return str(self.early["reason"]) if self.early else "the command's own"

    @property
    def source(self) -> ExitSource:
        """What the exit code is about, where nothing is violated."""
        if not self.early:
            return ExitSource.COMMAND
        if self.code == CHECKER_DIED:
            return ExitSource.DAEMON if "daemon" in self.early else ExitSource.CHECKER
        return ExitSource.TIMEOUT if self.code == TIMED_OUT else ExitSource.SIGNAL

    @property
    def exit_status(self) -> int | None:
        """What the command passed to exit(3); None where a signal killed it or it has not ended."""
        return None if self.signal else self.exit_code

    @property
    def ending(self) -> str:
        """How the command ended, in words."""
        if self.signal:
            return f"the command was killed by {self.signal}"
        if self.exit_status is not None:
            return f"the command exited with {self.exit_status}"
        return f"the command: {self.ended}"

    def as_json(self) -> dict[str, Any]:
        """Return the keys that the outcome adds to a report."""
        command = {
            "argv": self.argv,
            "exit_code": self.exit_code,
            "exit_status": self.exit_status,
            "signal": self.signal or None,
            "ended": self.ended,
        }
        return {"command": command} | ({"ended_early": self.early} if self.early else {})


Streams = tuple[int | None, int | None]
"""Descriptors of the stdout and the stderr of a command; None: those of rmapd."""


@dataclass
class Command:
    """A command that is started once and polled with finished().

    terminate() sends a signal, and SIGKILL after grace_seconds. A command that survives SIGKILL is
    abandoned after a second. handles are pidfds: readable once the command has ended. streams: the
    descriptors of its stdout and stderr; None: ours. timeout: seconds after which end_if_over()
    ends it; None: never. early: why the run ended it, as in CommandOutcome.
    """

    argv: Sequence[str]
    grace_seconds: float
    streams: Streams = (None, None)
    timeout: float | None = None
    early: dict[str, Any] | None = None
    process: subprocess.Popen[bytes] | None = None
    handles: tuple[int, ...] = ()
    _code: int | None = None
    _until: float = float("inf")
    _kill_at: float = float("inf")
    _abandon_at: float = float("inf")

    def start(self) -> None:
        """Start the command. Raises NotRunnable."""
        try:
            stdout, stderr = self.streams
            self.process = subprocess.Popen(self.argv, stdout=stdout, stderr=stderr)
        except (OSError, ValueError) as error:
            kind = NotFound if getattr(error, "errno", 0) == errno.ENOENT else NotRunnable
            why = getattr(error, "strerror", None) or str(error)
            raise kind(
                f"cannot run {self.argv[0]}", why=why, hint="the command's full path"
            ) from error
        self.handles = (os.pidfd_open(self.process.pid),)
        if self.timeout is not None:
            self._until = time.monotonic() + self.timeout

    @property
    def seconds_left(self) -> float:
        """How long it may still run, in seconds; negative once its time is over."""
        return self._until - time.monotonic()

    def end_by_signal(self, number: int) -> None:
        """Pass on a signal that ends the run, unless the command has ended by itself."""
        name = signal_name(number)
        self._end_early(number, {"reason": f"{name} arrived", "signal": name}, 128 + number)

    def end_if_over(self) -> None:
        """Send SIGTERM once the command's time is over."""
        if self.timeout is not None and self.seconds_left <= 0 and not self.early:
            reason = f"the command's time was over (--timeout {self.timeout:g})"
            self._end_early(signal.SIGTERM, {"reason": reason}, TIMED_OUT)

    def _end_early(self, number: int, why: dict[str, Any], code: int) -> None:
        if not self.finished():
            self.early, self._code = why, code
            self.terminate(number)

    def terminate(self, number: int) -> None:
        """Send a signal; the grace period starts with the first one."""
        if self.process:
            self.process.send_signal(number)
        self._kill_at = min(self._kill_at, time.monotonic() + self.grace_seconds)

    def kill(self) -> None:
        """Send SIGKILL."""
        if self.process:
            self.process.kill()
        self._kill_at, self._abandon_at = float("inf"), time.monotonic() + _AFTER_KILL_SECONDS

    def close_handles(self) -> None:
        """Close the pidfds, once the end of the command is known."""
        for handle in self.handles:
            os.close(handle)
        self.handles = ()

    def finished(self) -> bool:
        """Return whether the command has ended or is abandoned; send a SIGKILL that is due."""
        if self.process is None or self.process.poll() is not None:
            return True
        now = time.monotonic()
        if now >= self._kill_at:
            self.kill()
        return now >= self._abandon_at

    def wait(self, seconds: float) -> None:
        """Wait until the command is finished, for this long at most."""
        until = time.monotonic() + seconds
        while not self.finished() and time.monotonic() < until:
            time.sleep(0.01)

    def outcome(
        self, code: int | None = None, early: dict[str, Any] | None = None
    ) -> CommandOutcome:
        """Return the present outcome.

        code: rmapd's exit code, with the reason in early; None: those of an early end, or else the
        command's.
        """
        if code is None:
            code, early = self._code, self.early
        status = self.process.poll() if self.process else None
        if not self.process:
            ended, shell = "it was not started", None
        elif status is None:
            survived = self._abandon_at < float("inf")
            ended, shell = "it did not end" + (", even after SIGKILL" if survived else ""), None
        else:
            ended = "it exited" if status >= 0 else f"killed by {signal_name(-status)}"
            shell = status if status >= 0 else 128 - status
        killed = signal_name(-status) if status is not None and status < 0 else ""
        return CommandOutcome(
            list(self.argv), shell, ended, (shell or 0) if code is None else code, early, killed
        )


def signal_name(number: int) -> str:
    """Return a signal's name; real-time signals have numbers only."""
    return signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
