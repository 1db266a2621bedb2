"""Errors for the user: what failed, why, and what to try; each class has its exit code.

2 and 4 would fail again at the next start, so systemd does not restart (rmapd.service). 75 and 70
are EX_TEMPFAIL and EX_SOFTWARE of sysexits.h; systemd restarts after them.
"""

from __future__ import annotations

import errno

from tracer.printable import printable

USAGE, VIOLATED, NOT_CHECKABLE, UNREACHABLE, DEFECT, TEMPORARY = 2, 3, 4, 5, 70, 75
_TEMPORARY = {
    getattr(errno, name)
    for name in (
        "EAGAIN EBUSY EDQUOT EADDRINUSE EADDRNOTAVAIL EINTR EMFILE ENFILE ENOBUFS ENOMEM ENOSPC "
        "ETIMEDOUT ETXTBSY"
    ).split()
}
"""Errors of a resource that is short or busy now."""


class RmapdError(Exception):
    """An error that the user can act on; the command line prints it and exits with its code."""

    exit_code = USAGE

    def __init__(self, what: str, *, why: str = "", hint: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.why = why
        self.hint = hint

    def __str__(self) -> str:
        """Return the message with names escaped; only `why`, a compiler's output, has lines."""
        text = printable(self.what)
        if self.why:
            text += ": " + "\n    ".join(map(printable, self.why.splitlines()))
        if self.hint:
            text += f"\n  try: {printable(self.hint)}"
        return text

    @property
    def in_a_line(self) -> str:
        """The message in one line, for the log."""
        return "; ".join(" ".join(line.split()) for line in str(self).splitlines())


class NotCheckable(RmapdError):
    """A required invariant cannot be checked on this kernel."""

    exit_code = NOT_CHECKABLE


class Unreachable(RmapdError):
    """A client got no answer from a running daemon."""

    exit_code = UNREACHABLE


class Temporary(RmapdError):
    """An error that may not come again later."""

    exit_code = TEMPORARY


class Defect(RmapdError):
    """A bug of rmapd; the traceback is in the log."""

    exit_code = DEFECT


def passes(error: BaseException) -> bool:
    """Return whether the error may pass: no memory, descriptor, disk space or port is free now."""
    if isinstance(error, OSError):
        return error.errno in _TEMPORARY
    return isinstance(error, MemoryError)


def of_os(error: OSError, what: str, hint: str = "") -> RmapdError:
    """Turn an OSError into a Temporary or an RmapdError. `what` is the action that failed."""
    kind = Temporary if passes(error) else RmapdError
    return kind(what, why=error.strerror or str(error), hint=hint)


def of_kind(exit_code: int) -> type[RmapdError]:
    """Return the class with this exit code, to raise an error of a child process again."""
    return next(
        (
            kind
            for kind in (NotCheckable, Unreachable, Temporary, Defect)
            if kind.exit_code == exit_code
        ),
        RmapdError,
    )
