"""The log: stderr. What is in a line is printable; under systemd each line has its priority (sd-daemon(3)), as journalctl -p knows it.

A defect in a thread of ours does not go on unseen: it is logged with its traceback, the main thread is asked to end in good order, and
the exit code is that of a defect.
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
"""syslog's, by level: a violation is `crit`."""


def priority(level: int) -> int:
    """syslog's priority of a level of logging."""
    return next(_PRIORITIES[known] for known in _PRIORITIES if level >= known)


def is_journal(environ: Mapping[str, str], fd: int) -> bool:
    """Whether this stream is the one that journald reads: JOURNAL_STREAM is its device and inode (systemd.exec(5))."""
    try:
        found = os.fstat(fd)
    except OSError:
        return False
    return environ.get("JOURNAL_STREAM", "") == f"{found.st_dev}:{found.st_ino}"


class Lines(logging.Formatter):
    """A record is one printable line, then its traceback; prefixed: each line begins with its priority."""

    def __init__(self, *, prefixed: bool = False) -> None:
        super().__init__(_FORMAT)
        self._prefixed = prefixed

    def format(self, record: logging.LogRecord) -> str:
        said = super().format(record)
        prefix = f"<{priority(record.levelno)}>" if self._prefixed else ""
        return "\n".join(prefix + line for line in said.split("\n"))

    def formatMessage(self, record: logging.LogRecord) -> str:
        return printable(super().formatMessage(record))

    def formatException(
        self,
        ei: tuple[type[BaseException], BaseException, TracebackType | None]
        | tuple[None, None, None],
    ) -> str:
        return printable(super().formatException(ei), keep="\n")


@contextlib.contextmanager
def to_stderr() -> Iterator[None]:
    """While the context is open: warnings and worse; `rmapd run` asks for more."""
    handler, root = logging.StreamHandler(sys.stderr), logging.getLogger()
    handler.setFormatter(Lines(prefixed=is_journal(os.environ, 2)))
    level = root.level
    root.addHandler(handler)
    try:
        yield
    finally:
        root.setLevel(level)
        root.removeHandler(handler)


class Threads:
    """Notices what ends a thread. Use as a context manager around a command."""

    def __init__(self) -> None:
        self.failed = ""

    def __enter__(self) -> Threads:
        self._before = threading.excepthook
        threading.excepthook = self._notice
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        threading.excepthook = self._before

    def _notice(self, args: threading.ExceptHookArgs) -> None:
        """In the thread that ends. The main one is told as by SIGTERM, without a system call: it may have given up kill(2)."""
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
