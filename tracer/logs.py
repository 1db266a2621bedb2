"""The log on stderr: printable lines; under systemd each with its priority, for journalctl -p.

An exception that ends a thread is logged with its traceback; then the main thread is asked to end
in good order, and the exit code is that of a defect.
"""

from __future__ import annotations

import _thread
import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from types import TracebackType

from tracer.printable import printable

log = logging.getLogger("rmapd")

_FORMAT = "%(asctime)s %(levelname)s %(message)s"
_PRIORITIES = {
    logging.CRITICAL: 2,
    logging.ERROR: 3,
    logging.WARNING: 4,
    logging.INFO: 6,
    logging.DEBUG: 7,
}
"""Priorities of syslog, by level of logging: a violation is `crit`."""


def priority(level: int) -> int:
    """Return syslog's priority for a level of logging."""
    return next(_PRIORITIES[known] for known in _PRIORITIES if level >= known)


def is_journal(environ: Mapping[str, str], fd: int) -> bool:
    """Return whether this descriptor is the journal: JOURNAL_STREAM has its device and inode.

    See systemd.exec(5).
    """
    try:
        found = os.fstat(fd)
    except OSError:
        return False
    return environ.get("JOURNAL_STREAM", "") == f"{found.st_dev}:{found.st_ino}"


class LineFormatter(logging.Formatter):
    """Formats a record as one printable line and its traceback.

    prefixed: each line begins with its priority, as sd-daemon(3) has it.
    """

    def __init__(self, *, prefixed: bool = False) -> None:
        super().__init__(_FORMAT)
        self._prefixed = prefixed

    def format(self, record: logging.LogRecord) -> str:
        """Format the record, its traceback, and the prefixes."""
        text = super().format(record)
        prefix = f"<{priority(record.levelno)}>" if self._prefixed else ""
        return "\n".join(prefix + line for line in text.split("\n"))

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Format the line without its traceback; escape what is not printable."""
        return printable(super().formatMessage(record))

    def formatException(
        self,
        ei: tuple[type[BaseException], BaseException, TracebackType | None]
        | tuple[None, None, None],
    ) -> str:
        """Format the traceback; escape what is not printable."""
        return printable(super().formatException(ei), keep="\n")


@contextlib.contextmanager
def to_stderr() -> Iterator[None]:
    """Log warnings and worse to stderr while the context is open; `rmapd run` sets level INFO."""
    handler, root = logging.StreamHandler(sys.stderr), logging.getLogger()
    handler.setFormatter(LineFormatter(prefixed=is_journal(os.environ, 2)))
    level = root.level
    root.addHandler(handler)
    try:
        yield
    finally:
        root.setLevel(level)
        root.removeHandler(handler)


class ThreadFailures:
    """A context manager around a command that records exceptions that end a thread.

    failed is the name of the first such thread.
    """

    def __init__(self) -> None:
        self.failed = ""
        self._before = threading.excepthook

    def __enter__(self) -> ThreadFailures:
        self._before = threading.excepthook
        threading.excepthook = self._record
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        threading.excepthook = self._before

    def _record(self, args: threading.ExceptHookArgs) -> None:
        """Log the exception in the thread that it ends; run SIGTERM's handler in the main thread.

        That needs no system call: a seccomp filter may refuse kill(2).
        """
        if args.exc_type is SystemExit:
            return
        name = args.thread.name if args.thread else "unknown"
        self.failed = self.failed or name
        error = args.exc_value or args.exc_type()
        log.critical(
            "a defect of rmapd ended its thread %s",
            name,
            exc_info=(args.exc_type, error, args.exc_traceback),
        )
        if callable(signal.getsignal(signal.SIGTERM)):
            _thread.interrupt_main(signal.SIGTERM)
