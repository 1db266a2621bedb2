"""Files that are written whole or not at all, and errors that say which."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tracer.errors import of_os

_HINT = "a folder that exists, has room and may be written to"
_PATIENCE_SECONDS = 10.0
_PIECE = 1 << 16
_SOME_ROOM = 1 << 16


def writable(path: Path, what: str) -> None:
    """Find out before the work, not after it. RmapdError where `what` could not be written there."""
    with _said(path, what, _HINT):
        if path.is_dir():
            raise IsADirectoryError(None, "it is a folder")
        if _special(path):
            os.close(_opened(path))
        else:
            with tempfile.NamedTemporaryFile(dir=path.resolve().parent, prefix=".rmapd-") as file:
                file.write(bytes(_SOME_ROOM))


def write(
    path: Path,
    text: str,
    what: str,
    hint: str = "a folder that exists, has room and may be written to",
    *,
    rescue: bool = True,
) -> None:
    """The old file stays until the new one is whole and on the disk; a device or a pipe is written to as it is. RmapdError where it cannot
    be; rescue: what took long to make is then left in another folder, which the error names."""
    with _said(path, what, hint, text if rescue else ""):
        if _special(path):
            _pour(path, text.encode(errors="backslashreplace"))
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


def _opened(path: Path) -> int:
    try:
        return os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except OSError as error:
        if error.errno == errno.ENXIO:
            raise OSError(errno.ENXIO, "nobody reads from this pipe") from error
        raise


def _pour(path: Path, data: bytes) -> None:
    """Into a device or a pipe; a pipe whose reader stops is given up."""
    file = _opened(path)
    try:
        poll, left = select.poll(), memoryview(data)
        poll.register(file, select.POLLOUT)
        while left:
            if not poll.poll(_PATIENCE_SECONDS * 1000):
                raise TimeoutError(
                    errno.ETIMEDOUT, f"nothing was taken for {_PATIENCE_SECONDS:g} s"
                )
            with contextlib.suppress(BlockingIOError):
                left = left[os.write(file, left[:_PIECE]) :]
    finally:
        os.close(file)


def _special(path: Path) -> bool:
    """/dev/null must not be replaced by a file."""
    return path.exists() and not path.is_file()


@contextlib.contextmanager
def _said(path: Path, what: str, hint: str, text: str = "") -> Iterator[None]:
    try:
        yield
    except OSError as error:
        kept = _rescued(path, text) if text else ""
        raise of_os(
            error, f"cannot write {what} {path}", f"it is kept in {kept}" if kept else hint
        ) from error


def _rescued(path: Path, text: str) -> str:
    """Where it is now; empty where no folder took it."""
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
