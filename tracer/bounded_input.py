"""Files that somebody names: read whole, but never without a bound. A pipe that nobody fills, or a device without an end, is an error."""

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
"""For the whole of what is no regular file: a pipe, a terminal."""
MOST_CONFIGURATION = 1 << 20
_MOST_UNSEEKABLE = 64 << 20
_PIECE = 1 << 20
_MOST_DEEP = 64


def read(path: Path, what: str, most: int, hint: str = "") -> bytes:
    """All bytes of it. RmapdError where it cannot be read, has more than `most`, or does not end in time."""
    try:
        with contextlib.closing(_Descriptor(path)) as file:
            return file.all(min(most, _MOST_UNSEEKABLE) if file.endless else most)
    except OSError as error:
        raise of_os(error, f"cannot read {what}{' ' if what else ''}{path}", hint) from error
    except _Refused as error:
        raise RmapdError(
            f"cannot read {what}{' ' if what else ''}{path}",
            why=str(error),
            hint=hint or "a regular file",
        ) from error


def text(path: Path, what: str, most: int, hint: str = "") -> str:
    """The same as UTF-8."""
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
    """endless: it may have no end, or none in time."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
        self.endless = not stat.S_ISREG(os.fstat(self._fd).st_mode)

    def close(self) -> None:
        os.close(self._fd)

    def all(self, most: int) -> bytes:
        parts, end = bytearray(), time.monotonic() + PATIENCE_SECONDS
        while part := self._part(end):
            parts += part
            if len(parts) > most:
                raise _Refused(f"it has more than {_size(most)}")
        return bytes(parts)

    def _part(self, end: float) -> bytes:
        while True:
            if self.endless:
                self._wait(end)
            try:
                return os.read(self._fd, _PIECE)
            except BlockingIOError:
                if not self.endless:
                    raise

    def _wait(self, end: float) -> None:
        """For something to read; a pipe that nobody has opened yet has nothing, and no end either."""
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        left = end - time.monotonic()
        if left <= 0 or not poll.poll(left * 1000):
            raise _Refused(
                f"it did not end within {PATIENCE_SECONDS:g} s, and it is no regular file"
            )


def _size(most: int) -> str:
    return f"{most >> 30} GiB" if most >= 1 << 30 else f"{most >> 20} MiB"


def json_value(data: bytes) -> Any:
    """What JSON has in it, without what is no JSON (NaN) and bounded in depth. ValueError or RecursionError where it is none."""
    found = json.loads(data, parse_constant=_no_number)
    _bounded(found, _MOST_DEEP)
    return found


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number")


def _bounded(found: Any, left: int) -> None:
    if not left:
        raise ValueError(f"it is nested more than {_MOST_DEEP} deep")
    for each in (
        found.values() if isinstance(found, dict) else found if isinstance(found, list) else ()
    ):
        if isinstance(each, dict | list):
            _bounded(each, left - 1)
