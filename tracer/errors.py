"""What can go wrong before there is a verdict: every message says what, where, why and what to try; every kind has its exit code.

2 and 4 come again at every start, and systemd does not try again (rmapd.service). 75 and 70 are those of sysexits.h, and it does.
"""

from __future__ import annotations

import errno

from tracer.printable import printable

USAGE, NOT_CHECKABLE, DEFECT, TEMPORARY = 2, 4, 70, 75
_PASSES = {
    getattr(errno, name)
    for name in "EAGAIN EBUSY EDQUOT EADDRINUSE EADDRNOTAVAIL EINTR EMFILE ENFILE ENOBUFS ENOMEM ENOSPC ETIMEDOUT ETXTBSY".split()
}
"""What another process or the machine is short of now."""


class RmapdError(Exception):
    """A set-up or usage error the user can act on; the command line prints it and exits with its code."""

    exit_code = USAGE

    def __init__(self, what: str, *, why: str = "", hint: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.why = why
        self.hint = hint

    def __str__(self) -> str:
        """For people: names in it are escaped. Only the why may have lines (a compiler's), which are set in."""
        text = printable(self.what)
        if self.why:
            text += ": " + "\n    ".join(map(printable, self.why.splitlines()))
        if self.hint:
            text += f"\n  try: {printable(self.hint)}"
        return text

    @property
    def in_a_line(self) -> str:
        """For the log."""
        return "; ".join(" ".join(line.split()) for line in str(self).splitlines())


class NotCheckable(RmapdError):
    """A required invariant cannot be checked here."""

    exit_code = NOT_CHECKABLE


class Temporary(RmapdError):
    """What may pass by itself: the same again, later, may work."""

    exit_code = TEMPORARY


class Defect(RmapdError):
    """A fault of rmapd's own; the traceback is in the log."""

    exit_code = DEFECT


def passes(error: BaseException) -> bool:
    """Whether it may pass by itself: no memory, no descriptor, no room, no port."""
    return isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in _PASSES)


def of_os(error: OSError, what: str, hint: str = "") -> RmapdError:
    """What the system refused, as Temporary where that may pass."""
    kind = Temporary if passes(error) else RmapdError
    return kind(what, why=error.strerror or str(error), hint=hint)


def of_kind(exit_code: int) -> type[RmapdError]:
    """The class with this exit code: an error that another process of ours met."""
    return next(
        (kind for kind in (NotCheckable, Temporary, Defect) if kind.exit_code == exit_code),
        RmapdError,
    )
