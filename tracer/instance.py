"""One rmapd on a machine, and how it is asked to stop."""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path
from types import FrameType

from tracer.errors import RmapdError


def only_one(path: Path, owner: int = 0) -> contextlib.ExitStack:
    """Hold the lock file for as long as the returned stack is open; RmapdError names the rmapd that has it. owner: who is to be named,
    if it is not this process."""
    stack = contextlib.ExitStack()
    try:
        file = stack.enter_context(path.open("a+"))
    except OSError as error:
        raise RmapdError(f"cannot write the lock file {path}", why=error.strerror or "", hint="lock_file in the configuration") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.seek(0)
        other = file.read().strip() or "unknown"
        stack.close()
        raise RmapdError(
            f"another rmapd is tracing this kernel (pid {other})",
            why=f"it holds {path}",
            hint=f"its /metrics, or stop it first: kill {other}",
        ) from error
    file.truncate(0)
    file.write(str(owner or os.getpid()))
    file.flush()
    return stack


class ReloadSignal:
    """SIGHUP asks for the configuration to be read again; the loop sees it within a tick."""

    def __init__(self) -> None:
        self._asked = False

    def __call__(self, _number: int, _frame: FrameType | None) -> None:
        self._asked = True

    def taken(self) -> bool:
        """Whether it was asked since the last time."""
        asked, self._asked = self._asked, False
        return asked


class StopSignal:
    """SIGTERM and SIGINT ask the loop to end; the loop sees it within a tick."""

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self, number: int, _frame: FrameType | None) -> None:
        self.asked = number
