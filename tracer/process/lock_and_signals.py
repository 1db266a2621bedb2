"""The lock file that allows one rmapd on a machine, and the signals to stop and to reload."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from pathlib import Path
from types import FrameType

from tracer.errors import RmapdError, Temporary, of_os


def hold_lock_file(path: Path, owner: int = 0, more: str = "") -> contextlib.ExitStack:
    """Lock the file until the returned stack is closed; write the pid `owner` (0: ours) to it.

    more: what to add to the reason where another rmapd holds the lock. Raises Temporary, with the
    pid of the other rmapd, where the lock is held; RmapdError where the file cannot be used.
    """
    stack = contextlib.ExitStack()
    file = stack.enter_context(os.fdopen(_open(path), "r+", encoding="ascii", errors="replace"))
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
            why=f"it holds {path}" + (f", and {more}" if more else ""),
            hint="its /metrics, or stop it first" + (f": kill {other}" if known else ""),
        ) from error
    except OSError as error:
        with contextlib.suppress(OSError):  # close() tries the failed write again
            stack.close()
        raise of_os(
            error, f"cannot write the lock file {path}", "lock_file in the configuration"
        ) from error
    return stack


def _open(path: Path) -> int:
    """Open the lock file, and make it and its folder where they are missing.

    Every process that can open the file can hold the lock, so its mode excludes other users. The
    folder belongs to the daemon's user: root must not write through a link to a file of root's.
    """
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
                f"{path} is not a lock file",
                why="another program put it there",
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
    """A handler for SIGHUP: the loop reads the configuration again within a tick."""

    def __init__(self) -> None:
        self._asked = False

    def __call__(self, _number: int, _frame: FrameType | None) -> None:
        """Handle the signal: record it only."""
        self._asked = True

    def take(self) -> bool:
        """Return whether the signal has arrived since the last call."""
        asked, self._asked = self._asked, False
        return asked


class StopSignal:
    """A handler for SIGTERM and SIGINT: the loop ends within a tick. asked: the signal, or 0."""

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self, number: int, _frame: FrameType | None) -> None:
        """Handle the signal: record it only."""
        self.asked = number
