"""One rmapd on a machine, and how it is asked to stop."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from pathlib import Path
from types import FrameType

from tracer.errors import RmapdError, Temporary, of_os


def only_one(path: Path, owner: int = 0) -> contextlib.ExitStack:
    """Hold the lock file for as long as the returned stack is open; RmapdError names the rmapd that has it. owner: who is to be named,
    if it is not this process."""
    stack = contextlib.ExitStack()
    file = stack.enter_context(os.fdopen(_opened(path), "r+", encoding="ascii", errors="replace"))
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        file.truncate(0)
        file.write(str(owner or os.getpid()))
        file.flush()
    except BlockingIOError as error:
        file.seek(0)
        other = file.read(20).strip()
        stack.close()
        known = other.isascii() and other.isdigit()
        raise Temporary(
            f"another rmapd is tracing this kernel (pid {other if known else 'unknown'})",
            why=f"it holds {path}",
            hint="its /metrics, or stop it first" + (f": kill {other}" if known else ""),
        ) from error
    except OSError as error:
        with contextlib.suppress(OSError):  # what could not be written is tried once more
            stack.close()
        raise of_os(
            error, f"cannot write the lock file {path}", "lock_file in the configuration"
        ) from error
    return stack


def _opened(path: Path) -> int:
    """The lock file, made where there is none, its folder too. Whoever can open it can hold the lock: it is closed to other users.
    The folder is the daemon's user's: what root writes must not go through a link to a file of root's."""
    try:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        fd = os.open(
            path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600
        )
        found = os.fstat(fd)
        if (
            not stat.S_ISREG(found.st_mode)
            or found.st_nlink != 1
            or found.st_uid not in (0, os.geteuid(), path.parent.stat().st_uid)
        ):
            os.close(fd)
            raise RmapdError(
                f"{path} is no lock file",
                why="somebody else put it there",
                hint="remove it, or another lock_file",
            )
        if found.st_mode & 0o077:
            os.fchmod(fd, 0o600)
    except OSError as error:
        raise of_os(
            error, f"cannot write the lock file {path}", "lock_file in the configuration"
        ) from error
    return fd


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
