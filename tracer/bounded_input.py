"""Read a file that the user names, bounded in size and in time.

A pipe without a writer and an endless device are errors.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import stat
import time
from pathlib import Path
from typing import Any

from tracer.errors import RmapdError, of_os

PATIENCE_SECONDS = 10.0
"""The time limit for a whole pipe or terminal; a regular file has none."""
MOST_CONFIGURATION = 1 << 20
_MOST_UNSEEKABLE = 64 << 20
_CHUNK_BYTES = 1 << 20
_MAX_DEPTH = 64


def read(path: Path, what: str, most: int, hint: str = "") -> bytes:
    """Return the content of a file; `what` it is goes into the errors.

    Raises RmapdError where it has more than `most` bytes, or does not end in time.
    """
    try:
        with contextlib.closing(_Descriptor(path)) as file:
            return file.read_all(min(most, _MOST_UNSEEKABLE) if file.endless else most)
    except OSError as error:
        raise of_os(error, f"cannot read {what}{' ' if what else ''}{path}", hint) from error
    except _Refused as error:
        raise RmapdError(
            f"cannot read {what}{' ' if what else ''}{path}",
            why=str(error),
            hint=hint or "a regular file",
        ) from error


def text(path: Path, what: str, most: int, hint: str = "") -> str:
    """Return the content as UTF-8 text, with the bounds and errors of read()."""
    try:
        return read(path, what, most, hint).decode()
    except UnicodeDecodeError as error:
        raise RmapdError(
            f"{what} {path} is wrong",
            why=f"it is not UTF-8: {error}",
            hint=hint or "the file saved as UTF-8",
        ) from error


class _Refused(Exception):
    pass


class _Descriptor:
    """An open file; endless: not a regular file, so it may not end."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
        self.endless = not stat.S_ISREG(os.fstat(self._fd).st_mode)

    def close(self) -> None:
        os.close(self._fd)

    def read_all(self, most: int) -> bytes:
        parts, end = bytearray(), time.monotonic() + PATIENCE_SECONDS
        while part := self._read_chunk(end):
            parts += part
            if len(parts) > most:
                raise _Refused(f"it has more than {_size(most)}")
        return bytes(parts)

    def _read_chunk(self, end: float) -> bytes:
        while True:
            if self.endless:
                self._wait(end)
            try:
                return os.read(self._fd, _CHUNK_BYTES)
            except BlockingIOError:
                if not self.endless:
                    raise

    def _wait(self, end: float) -> None:
        """Wait until it can be read; a pipe without a writer has neither data nor an end."""
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        left = end - time.monotonic()
        if left <= 0 or not poll.poll(left * 1000):
            raise _Refused(
                f"it did not end within {PATIENCE_SECONDS:g} s, and it is not a regular file"
            )


def _size(most: int) -> str:
    return f"{most >> 30} GiB" if most >= 1 << 30 else f"{most >> 20} MiB"


def json_value(data: bytes) -> Any:
    """Decode JSON without NaN, bounded in depth. Raises ValueError or RecursionError."""
    found = json.loads(data, parse_constant=_reject_constant)
    _check_depth(found, _MAX_DEPTH)
    return found


def _reject_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _check_depth(found: Any, left: int) -> None:
    if not left:
        raise ValueError(f"it is nested more than {_MAX_DEPTH} deep")
    for each in (
        found.values() if isinstance(found, dict) else found if isinstance(found, list) else ()
    ):
        if isinstance(each, dict | list):
            _check_depth(each, left - 1)
