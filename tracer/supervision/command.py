"""The command of `rmapd exec`: started, given signals, ended; and how a run of it ended. Nobody waits for it but for a time."""

from __future__ import annotations

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

TIMED_OUT, JUDGE_DIED, NOT_RUNNABLE, NOT_FOUND = 124, 71, 126, 127
"""Exit codes: of timeout(1), of sysexits.h (EX_OSERR), of env(1)."""
FAILED = 125
"""rmapd failed, and not the command: as env(1) and timeout(1)."""
_AFTER_KILL_SECONDS = 1.0


class NotRunnable(RmapdError):
    """The command was not found, or cannot be run: 127 or 126."""

    exit_code = NOT_RUNNABLE


class NotFound(NotRunnable):
    """There is no such command."""

    exit_code = NOT_FOUND


class Outcome(msgspec.Struct, frozen=True):
    """How a run ended. exit_code: the command's, as a shell says it (128 and the signal); None: it has not ended.
    early: why the run ended before the command did by itself; code: what rmapd exits with where nothing is violated."""

    argv: list[str]
    exit_code: int | None
    ended: str
    code: int
    early: dict[str, Any] | None = None

    @property
    def reason(self) -> str:
        return str(self.early["reason"]) if self.early else "the command's own"

    def as_json(self) -> dict[str, Any]:
        """What it adds to a report."""
        command = {"argv": self.argv, "exit_code": self.exit_code, "ended": self.ended}
        return {"command": command} | ({"ended_early": self.early} if self.early else {})


@dataclass
class Command:
    """start(), then over() again and again; end() is a signal and, after the grace, SIGKILL; what does not die of that is left alone.

    handles: can be read when it has ended."""

    argv: Sequence[str]
    grace_seconds: float
    process: subprocess.Popen[bytes] | None = None
    handles: tuple[int, ...] = ()
    _kill_at: float = float("inf")
    _leave_at: float = float("inf")

    def start(self) -> None:
        """Raises NotRunnable."""
        try:
            self.process = subprocess.Popen(self.argv)
        except (OSError, ValueError) as error:
            kind = NotFound if getattr(error, "errno", 0) == errno.ENOENT else NotRunnable
            why = getattr(error, "strerror", None) or str(error)
            raise kind(
                f"cannot run {self.argv[0]}", why=why, hint="the command's full path"
            ) from error
        self.handles = (os.pidfd_open(self.process.pid),)

    def end(self, number: int) -> None:
        """Ask it to end; from then on its time runs."""
        if self.process:
            self.process.send_signal(number)
        self._kill_at = min(self._kill_at, time.monotonic() + self.grace_seconds)

    def kill(self) -> None:
        if self.process:
            self.process.kill()
        self._kill_at, self._leave_at = float("inf"), time.monotonic() + _AFTER_KILL_SECONDS

    def let_go(self) -> None:
        """Nobody waits for it any more."""
        for handle in self.handles:
            os.close(handle)
        self.handles = ()

    def over(self) -> bool:
        """Whether it has ended, or nobody waits for it any more."""
        if self.process is None or self.process.poll() is not None:
            return True
        now = time.monotonic()
        if now >= self._kill_at:
            self.kill()
        return now >= self._leave_at

    def wait(self, seconds: float) -> None:
        """Until it is over, but no longer."""
        until = time.monotonic() + seconds
        while not self.over() and time.monotonic() < until:
            time.sleep(0.01)

    def outcome(self, code: int | None = None, early: dict[str, Any] | None = None) -> Outcome:
        """As it is now. code: what rmapd exits with; None: with the command's own."""
        status = self.process.poll() if self.process else None
        if not self.process:
            ended, shell = "it was not started", None
        elif status is None:
            ended, shell = (
                "it did not end" + (", SIGKILL or not" if self._leave_at < float("inf") else ""),
                None,
            )
        else:
            ended = "it exited" if status >= 0 else f"killed by {signal_name(-status)}"
            shell = status if status >= 0 else 128 - status
        return Outcome(list(self.argv), shell, ended, (shell or 0) if code is None else code, early)


def signal_name(number: int) -> str:
    return signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
