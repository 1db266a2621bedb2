"""Turn the exception that ends a command into a message on stderr and an exit code."""

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

import click

from tracer import logs
from tracer.errors import DEFECT, TEMPORARY, RmapdError, of_os, passes

log = logging.getLogger("rmapd")

_REFUSED = "cannot write to standard output"
_ROOM = "a file or a pipe with room for it"
_INTERRUPTED = 128 + signal.SIGINT


class StdoutError(OSError):
    """A write to standard output failed."""


class Stdout(io.TextIOWrapper):
    """Standard output whose errors are StdoutError, unlike those of other files and sockets."""

    def write(self, text: str) -> int:
        """Write the text. Raises StdoutError."""
        with _stdout_errors():
            return super().write(text)

    def flush(self) -> None:
        """Write what is buffered. Raises StdoutError."""
        with _stdout_errors():
            super().flush()


@contextlib.contextmanager
def _stdout_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StdoutError(error.errno, error.strerror) from error


def install_stdout() -> None:
    """Replace sys.stdout by a Stdout, which escapes characters that its encoding lacks."""
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
        # The old one is detached; shutil.get_terminal_size() asks this name.
        sys.__stdout__ = sys.stdout  # type: ignore[misc]


def exit_code_of(error: BaseException) -> int:
    """Print the error and return its exit code; log the traceback of an unexpected one."""
    if isinstance(error, RmapdError):
        print_error(error)
        return error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return _INTERRUPTED
    if isinstance(error, SystemExit | GeneratorExit):
        raise error
    if isinstance(error, StdoutError):
        return _report_stdout_error(error)
    kind, shortage = type(error).__name__, passes(error)
    log.critical(
        "%s: %s: %s", "not now" if shortage else "a defect of rmapd", kind, error, exc_info=error
    )
    what, hint = (
        ("rmapd cannot go on now", "the same again later")
        if shortage
        else ("rmapd failed", "report it, with this traceback")
    )
    print_error(RmapdError(what, why=f"{kind}: {error}", hint=hint))
    return TEMPORARY if shortage else DEFECT


def print_error(error: RmapdError) -> None:
    """Print the error to stderr, where the log is JSON as a line of it.

    A failure of stderr is ignored.
    """
    if logs.is_json():
        logs.always(logging.ERROR, error.in_a_line, __file__)
        return
    try:
        print(f"rmapd: {error}", file=sys.stderr, flush=True)
    except (OSError, ValueError):
        _discard(sys.stderr)


def _report_stdout_error(error: StdoutError) -> int:
    _discard(sys.stdout)
    if error.errno == errno.EPIPE:  # the reader closed the pipe: not an error
        return 0
    refused = of_os(error, _REFUSED, _ROOM)
    print_error(refused)
    return refused.exit_code


def _discard(stream: TextIO) -> None:
    """Point the stream at /dev/null: Python writes the rest of its buffer at exit."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def print_text(text: str, hint: str = _ROOM) -> None:
    """Print to the standard output, for a command whose exit code says more than that it printed.

    A reader that has closed its pipe is not an error, and changes no exit code. hint: to do where
    the output cannot be written. Raises RmapdError.
    """
    try:
        click.echo(text, nl=False)
    except OSError as error:
        _discard(sys.stdout)
        if error.errno != errno.EPIPE:
            raise of_os(error, _REFUSED, hint) from error


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Let Ctrl-C raise KeyboardInterrupt, so that cleanup runs; outside, it ends the process."""
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
