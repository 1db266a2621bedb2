"""A program on a terminal of its own: what it draws, and keys."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Mapping, Sequence

import pyte

from tests.support.clock import SAFETY_SECONDS


class Terminal:
    """Runs a command on a pty, and reads what is on its screen by a terminal emulator."""

    def __init__(
        self,
        command: Sequence[str],
        size: tuple[int, int] = (80, 24),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        columns, rows = size
        self._screen = pyte.Screen(columns, rows)
        self._stream = pyte.ByteStream(self._screen)
        self.drawn = b""
        self._fd, theirs = pty.openpty()
        self._set_size(columns, rows)
        hidden = ("NO_COLOR", "COLUMNS", "LINES", "TERM")
        given = {name: text for name, text in os.environ.items() if name not in hidden}
        given |= {"TERM": "xterm-256color"} | dict(environment or {})
        self.process = subprocess.Popen(
            command, stdin=theirs, stdout=theirs, stderr=theirs, env=given, start_new_session=True
        )
        os.close(theirs)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(SAFETY_SECONDS)
        os.close(self._fd)

    def _set_size(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self._fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def resize(self, columns: int, rows: int) -> None:
        """Give the terminal another size; the kernel sends SIGWINCH."""
        self._screen.resize(rows, columns)
        self._set_size(columns, rows)
        os.killpg(self.process.pid, 28)

    def press(self, keys: str) -> None:
        """Type keys."""
        os.write(self._fd, keys.encode())

    @property
    def lines(self) -> list[str]:
        """The lines of the screen."""
        return [line.rstrip() for line in self._screen.display]

    @property
    def text(self) -> str:
        """The screen as one text."""
        return "\n".join(self.lines)

    def read(self, seconds: float) -> bool:
        """Draw what comes within this time; return whether the program may draw more."""
        if not select.select([self._fd], [], [], seconds)[0]:
            return True
        try:
            piece = os.read(self._fd, 65536)
        except OSError:  # EIO: the program has ended
            return False
        self.drawn += piece
        self._stream.feed(piece)
        return bool(piece)

    def until(self, holds: Callable[[], object], why: str = "") -> None:
        """Draw until this holds."""
        end = time.monotonic() + SAFETY_SECONDS
        while not holds():
            assert self.read(0.1), f"it ended: {self.text}"
            assert time.monotonic() < end, f"not {why}:\n{self.text}"

    def shows(self, *parts: str) -> None:
        """Wait until all of these are on the screen."""
        self.until(lambda: all(part in self.text for part in parts), f"{parts}")

    def end(self) -> int:
        """Draw until the program ends; return its exit code."""
        end = time.monotonic() + SAFETY_SECONDS
        while self.read(0.1):
            assert time.monotonic() < end, f"it does not end:\n{self.text}"
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(SAFETY_SECONDS)
        return int(self.process.returncode)
