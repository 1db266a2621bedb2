"""The log on stderr: text or JSON lines; under systemd with priorities, for journalctl -p.

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
from collections import deque
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from tracer import screen
from tracer.printable import json_text, printable

log = logging.getLogger("rmapd")

LEVELS: Mapping[str, int] = {
    "emerg": 70,
    "alert": 60,
    "crit": logging.CRITICAL,
    "err": logging.ERROR,
    "warning": logging.WARNING,
    "notice": 25,
    "info": logging.INFO,
    "debug": logging.DEBUG,
}
"""Levels of logging by syslog's names, from priority 0 to 7. A violation is `crit`."""
ALIASES: Mapping[str, str] = {"critical": "crit", "error": "err", "warn": "warning"}
"""Python's names for some of them."""
FORMATS = ("text", "json")
_MOST_KEPT = 1000
_STEPS = ("crit", "err", "warning", "info", "debug")
"""The levels that rmapd writes at: -v and -q go from one to the next."""


def priority(level: int) -> int:
    """Return syslog's priority for a level of logging."""
    return next((n for n, known in enumerate(LEVELS.values()) if level >= known), len(LEVELS) - 1)


def level_name(level: int) -> str:
    """Return syslog's name for a level of logging."""
    return list(LEVELS)[priority(level)]


def level_named(name: str) -> str:
    """Return syslog's name for a level in syslog's or Python's words, in any case.

    Raises KeyError where there is no such level.
    """
    known = ALIASES.get(name.lower(), name.lower())
    if known not in LEVELS:
        raise KeyError(name)
    return known


def stepped(name: str, steps: int) -> str:
    """Return the level that is `steps` further than this one towards `debug`; negative: back."""
    for _ in range(abs(steps)):
        further = [one for one in _STEPS if (LEVELS[one] < LEVELS[name]) == (steps > 0)]
        further = [one for one in further if LEVELS[one] != LEVELS[name]]
        if not further:
            break
        name = further[0 if steps > 0 else -1]
    return name


def is_journal(environ: Mapping[str, str], fd: int) -> bool:
    """Return whether this descriptor is the journal: JOURNAL_STREAM has its device and inode.

    See systemd.exec(5).
    """
    try:
        found = os.fstat(fd)
    except OSError:
        return False
    return environ.get("JOURNAL_STREAM", "") == f"{found.st_dev}:{found.st_ino}"


class _Formatter(logging.Formatter):
    """What both formats share. prefixed: lines begin with a priority, as sd-daemon(3) has it."""

    def __init__(self, *, prefixed: bool = False) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s")
        self.prefixed = prefixed

    def prefix(self, record: logging.LogRecord) -> str:
        """Return what a line of this record begins with."""
        return f"<{priority(record.levelno)}>" if self.prefixed else ""

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        """Return the local time in ISO 8601, with milliseconds and the offset from UTC."""
        return (
            datetime.fromtimestamp(record.created).astimezone().isoformat(timespec="milliseconds")
        )

    def formatException(
        self,
        ei: tuple[type[BaseException], BaseException, TracebackType | None]
        | tuple[None, None, None],
    ) -> str:
        """Format the traceback; escape what is not printable."""
        return printable(super().formatException(ei), keep="\n")


class LineFormatter(_Formatter):
    """Formats a record as one printable line and its traceback.

    On a terminal (wrap) the line is broken at its blanks.
    """

    def __init__(self, *, prefixed: bool = False, wrap: bool = False) -> None:
        super().__init__(prefixed=prefixed)
        self._wrap = wrap

    def format(self, record: logging.LogRecord) -> str:
        """Format the record, its traceback, and the prefixes."""
        text, prefix = super().format(record), self.prefix(record)
        return "\n".join(prefix + line for line in text.split("\n"))

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Format the line without its traceback; escape what is not printable."""
        line = printable(super().formatMessage(record))
        if not self._wrap:
            return line
        return "\n".join(screen.wrapped(line, screen.columns(sys.stderr, sys.maxsize)))


class JsonFormatter(_Formatter):
    """Formats a record as a JSON line: time, level, area, message, fields, perhaps traceback.

    level: syslog's name. area: the module that logs, without `tracer.`; of a library its logger.
    fields: values of the message, for a program; a record has them as `extra={"fields": {...}}`.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Format the record."""
        line: dict[str, Any] = {
            "time": self.formatTime(record),
            "level": level_name(record.levelno),
            "area": _area(record),
            "message": record.getMessage(),
            "fields": getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return self.prefix(record) + json_text(line, indent=None)


_PACKAGE = Path(__file__).parent


def _area(record: logging.LogRecord) -> str:
    path = Path(record.pathname)
    if not path.is_relative_to(_PACKAGE):
        return record.name
    return ".".join(path.relative_to(_PACKAGE).with_suffix("").parts)


class _StderrHandler(logging.StreamHandler[Any]):
    """Writes to sys.stderr as it is then: a live table on the terminal replaces it for a while."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record."""
        self.stream = sys.stderr
        super().emit(record)

    def choose(self, form: str) -> None:
        """Write in this format from now on, text or json."""
        prefixed = is_journal(os.environ, 2)
        self.form = form
        self.setFormatter(
            JsonFormatter(prefixed=prefixed)
            if form == "json"
            else LineFormatter(prefixed=prefixed, wrap=screen.is_terminal(sys.stderr))
        )


@contextlib.contextmanager
def to_stderr() -> Iterator[None]:
    """Log warnings and worse to stderr while the context is open, until configure() changes it."""
    handler, root = _StderrHandler(), logging.getLogger()
    handler.choose("text")
    level = root.level
    root.addHandler(handler)
    try:
        yield
    finally:
        root.setLevel(level)
        root.removeHandler(handler)


def _handlers() -> list[_StderrHandler]:
    return [one for one in logging.getLogger().handlers if isinstance(one, _StderrHandler)]


def configure(level: str, form: str) -> None:
    """Log what is as severe as this level or more.

    level: in syslog's or Python's words. form: of FORMATS.
    """
    logging.getLogger().setLevel(LEVELS[level_named(level)])
    for handler in _handlers():
        handler.choose(form)


def choose_format(form: str) -> None:
    """Write the log in this format; the level stays as it is."""
    for handler in _handlers():
        handler.choose(form)


def is_json() -> bool:
    """Return whether the log on stderr is JSON lines."""
    return any(handler.form == "json" for handler in _handlers())


def fields(**values: object) -> dict[str, dict[str, object]]:
    """Return the `extra` of a log call: values of the message for the JSON format."""
    return {"fields": values}


def always(level: int, message: str, path: str, **values: object) -> None:
    """Log a message at whatever level the log is. path: of the module that logs. values: fields."""
    record = log.makeRecord(
        log.name, level, path, 0, "%s", (message,), None, extra=fields(**values)
    )
    log.handle(record)


@contextlib.contextmanager
def held_back() -> Iterator[None]:
    """Keep the log until the end: while the context is open, a program draws on the terminal."""
    root = logging.getLogger()
    shown = root.handlers[:]
    kept = _KeptRecords()
    root.handlers[:] = [kept]
    try:
        yield
    finally:
        root.handlers[:] = shown
        for record in kept.records:
            root.handle(record)


class _KeptRecords(logging.Handler):
    """Keeps the last records."""

    def __init__(self) -> None:
        super().__init__()
        self.records = deque[logging.LogRecord](maxlen=_MOST_KEPT)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record."""
        self.records.append(record)


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

    def __exit__(self, *_: object) -> None:
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
