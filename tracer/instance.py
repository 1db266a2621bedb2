"""One rmapd on a machine, and how it is asked to stop."""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path
from types import FrameType

from tracer.errors import Temporary, of_os


def only_one(path: Path) -> contextlib.ExitStack:
    """Hold the lock file for as long as the returned stack is open; RmapdError names the rmapd that has it."""
    stack = contextlib.ExitStack()
    try:
        file = stack.enter_context(path.open("a+", encoding="ascii", errors="replace"))
    except OSError as error:
        raise of_os(error, f"cannot write the lock file {path}", "lock_file in the configuration") from error
    try:
        if not path.is_file():
            raise OSError(0, "it is no file")
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
    except BlockingIOError as error:
        file.seek(0)
        owner = file.read(20).strip()
        stack.close()
        known = owner.isascii() and owner.isdigit()
        raise Temporary(
            f"another rmapd is tracing this kernel (pid {owner if known else 'unknown'})",
            why=f"it holds {path}",
            hint="its /metrics, or stop it first" + (f": kill {owner}" if known else ""),
        ) from error
    except OSError as error:
        with contextlib.suppress(OSError):  # what could not be written is tried once more
            stack.close()
        raise of_os(error, f"cannot write the lock file {path}", "lock_file in the configuration") from error
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
