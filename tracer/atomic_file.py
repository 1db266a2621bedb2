"""Write a file whole or not at all; errors name the file."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tracer.errors import of_os

_HINT = "a writable folder that exists and has room"
_PATIENCE_SECONDS = 10.0
_PIECE = 1 << 16
_TRIAL_BYTES = 1 << 16


def writable(path: Path, what: str) -> None:
    """Check, before the work, that the file can be written. Raises RmapdError with `what` it is."""
    with _named_errors(path, what, _HINT):
        if path.is_dir():
            raise IsADirectoryError(None, "it is a directory")
        if _is_special(path):
            os.close(_open(path))
        else:
            with tempfile.NamedTemporaryFile(dir=path.resolve().parent, prefix=".rmapd-") as file:
                file.write(bytes(_TRIAL_BYTES))


def write(
    path: Path,
    text: str,
    what: str,
    hint: str = _HINT,
    *,
    rescue: bool = True,
) -> None:
    """Write a temporary file, sync it and rename it to `path`; write devices and pipes directly.

    Raises RmapdError with `what` it is. rescue: on an error, save the text, which took long to
    make, in another folder, which the error names.
    """
    with _named_errors(path, what, hint, text if rescue else ""):
        if _is_special(path):
            _write_to_device(path, text.encode(errors="backslashreplace"))
            return
        target = path.resolve()
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=".rmapd-")
        try:
            with open(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            Path(name).chmod(0o644)
            os.replace(name, target)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(name)
            raise


def open_stream(path: Path, what: str) -> int:
    """Open a file for another process to write to as it runs, and return the descriptor.

    A regular file is made or emptied. Raises RmapdError with `what` it is.
    """
    with _named_errors(path, what, _HINT):
        if _is_special(path):
            file = _open(path)
            os.set_blocking(file, True)
            return file
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC | os.O_NOCTTY
        return os.open(path, flags, 0o644)


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except OSError as error:
        if error.errno == errno.ENXIO:
            raise OSError(errno.ENXIO, "no process reads this pipe") from error
        raise


def _write_to_device(path: Path, data: bytes) -> None:
    """Write to a device or a pipe; give up on a pipe whose reader stops for 10 s."""
    file = _open(path)
    try:
        poll, left = select.poll(), memoryview(data)
        poll.register(file, select.POLLOUT)
        while left:
            if not poll.poll(_PATIENCE_SECONDS * 1000):
                raise TimeoutError(
                    errno.ETIMEDOUT, f"the reader took nothing for {_PATIENCE_SECONDS:g} s"
                )
            with contextlib.suppress(BlockingIOError):
                left = left[os.write(file, left[:_PIECE]) :]
    finally:
        os.close(file)


def _is_special(path: Path) -> bool:
    """Return whether it is no regular file: /dev/null must not be replaced by one."""
    return path.exists() and not path.is_file()


@contextlib.contextmanager
def _named_errors(path: Path, what: str, hint: str, text: str = "") -> Iterator[None]:
    try:
        yield
    except OSError as error:
        kept = _save_elsewhere(path, text) if text else ""
        raise of_os(
            error, f"cannot write {what} {path}", f"it is saved in {kept}" if kept else hint
        ) from error


def _save_elsewhere(path: Path, text: str) -> str:
    """Save the text in a temporary folder and return its path; empty where no folder takes it."""
    for folder in (tempfile.gettempdir(), os.curdir):
        with contextlib.suppress(OSError):
            handle, name = tempfile.mkstemp(
                prefix="rmapd-", suffix=path.suffix or ".json", dir=folder
            )
            try:
                with open(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
                    file.write(text)
                return name
            except OSError:
                os.unlink(name)
                raise
    return ""
