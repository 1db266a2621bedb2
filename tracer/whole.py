"""Files that are written whole or not at all, and errors that say which."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tracer.errors import RmapdError


def writable(path: Path, what: str) -> None:
    """Find out before the work, not after it. RmapdError where `what` could not be written there."""
    with _said(path, what, "a folder that exists, has room and may be written to"):
        if path.is_dir():
            raise IsADirectoryError(None, "it is a folder")
        if not _special(path):
            with tempfile.NamedTemporaryFile(dir=path.resolve().parent, prefix=".rmapd-"):
                pass


def write(path: Path, text: str, what: str, hint: str = "a folder that exists, has room and may be written to") -> None:
    """The old file stays until the new one is whole and on the disk; a device or a pipe is written to as it is."""
    with _said(path, what, hint):
        if _special(path):
            path.write_text(text)
            return
        target = path.resolve()
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=".rmapd-")
        try:
            with open(handle, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            Path(name).chmod(0o644)
            os.replace(name, target)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(name)
            raise


def _special(path: Path) -> bool:
    """/dev/null must not be replaced by a file."""
    return path.exists() and not path.is_file()


@contextlib.contextmanager
def _said(path: Path, what: str, hint: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RmapdError(f"cannot write {what} {path}", why=error.strerror or str(error), hint=hint) from error
