"""How a command ended: an exception becomes a message on stderr and an exit code."""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import TextIO

from tracer.errors import DEFECT, TEMPORARY, RmapdError, of_os, passes

log = logging.getLogger("rmapd")

_INTERRUPTED = 128 + signal.SIGINT


class Unwritten(OSError):
    """Standard output did not take what was written to it."""


class Stdout(io.TextIOWrapper):
    """Standard output whose failure is told from that of any other file or socket; what its encoding lacks is written as escapes."""

    def write(self, text: str) -> int:
        with _told():
            return super().write(text)

    def flush(self) -> None:
        with _told():
            super().flush()


@contextlib.contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise Unwritten(error.errno, error.strerror) from error


def watch_stdout() -> None:
    """From now on sys.stdout is such a one."""
    now = sys.stdout
    if isinstance(now, io.TextIOWrapper):
        encoding, by_line, through = now.encoding, now.line_buffering, now.write_through
        sys.stdout = Stdout(
            now.detach(),
            encoding,
            "backslashreplace",
            line_buffering=by_line,
            write_through=through,
        )


def of(error: BaseException) -> int:
    """Say what happened; the exit code. The traceback of what nobody expected is in the log."""
    if isinstance(error, RmapdError):
        tell(error)
        return error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return _INTERRUPTED
    if isinstance(error, SystemExit | GeneratorExit):
        raise error
    if isinstance(error, Unwritten):
        return _unwritten(error)
    kind, shortage = type(error).__name__, passes(error)
    log.critical(
        "%s: %s: %s", "not now" if shortage else "a defect of rmapd", kind, error, exc_info=error
    )
    what, hint = (
        ("rmapd cannot go on now", "the same again later")
        if shortage
        else ("rmapd failed", "report it, with this traceback")
    )
    tell(RmapdError(what, why=f"{kind}: {error}", hint=hint))
    return TEMPORARY if shortage else DEFECT


def tell(error: RmapdError) -> None:
    """On stderr, if anybody can hear it there."""
    try:
        print(f"rmapd: {error}", file=sys.stderr, flush=True)
    except (OSError, ValueError):
        _silence(sys.stderr)


def _unwritten(error: Unwritten) -> int:
    _silence(sys.stdout)
    if error.errno == errno.EPIPE:  # whoever read it had enough
        return 0
    refused = of_os(error, "cannot write to standard output", "a file or a pipe with room for it")
    tell(refused)
    return refused.exit_code


def _silence(stream: TextIO) -> None:
    """What is left in its buffer goes nowhere, or Python would complain once more at its end."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt in here, so that what was begun is tidied up; outside it ends the process at once, without a word."""
    quiet = (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGINT) is signal.SIG_DFL
    )
    if quiet:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        if quiet:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
