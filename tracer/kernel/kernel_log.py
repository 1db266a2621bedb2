"""The kernel's log, by /dev/kmsg: each record that is printed from now on, and how many were lost.

Opening it takes CAP_SYSLOG where kernel.dmesg_restrict is set; reading an open descriptor takes
nothing. The format is in Documentation/ABI/testing/dev-kmsg of the kernel's source: each read(2)
returns one record.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

KMSG = Path("/dev/kmsg")
MOST_A_READ, MOST_A_SECOND = 256, 1000
"""Records that one read() takes, and that are read in a second. The kernel overwrites the others,
which costs nothing, and their number is known."""
_LONGEST = (
    8192  # PRINTKRB_RECORD_MAX with room: devkmsg_read() returns EINVAL where it is too small
)
_ESCAPED = re.compile(rb"\\x([0-9a-f]{2})")


@dataclass(frozen=True)
class LogRecord:
    """One record of the log.

    number: of the record since the boot. time_ns: of printk()'s clock, which is local_clock().
    facility: 0 is the kernel; what user space writes to /dev/kmsg has another one. caller: `T`
    and the task's id, or `C` and the CPU; empty where the kernel is built without PRINTK_CALLER.
    """

    number: int
    time_ns: int
    facility: int
    lines: tuple[str, ...]
    caller: str = ""

    @property
    def of_kernel(self) -> bool:
        """Whether the kernel printed it, and not user space."""
        return self.facility == 0


def parse_record(raw: bytes) -> LogRecord | None:
    """Parse what one read(2) returned; None where it is no record.

    The kernel escapes bytes below 32, above 126 and backslashes as \\xNN, and adds a line with a
    space before it for each property of a device.
    """
    head, separator, rest = raw.partition(b";")
    fields = head.split(b",")
    if not separator or len(fields) < 4 or not all(field.isdigit() for field in fields[:3]):
        return None
    priority, number, microseconds = (int(field) for field in fields[:3])
    caller = next((f[7:].decode(errors="replace") for f in fields if f.startswith(b"caller=")), "")
    text = _ESCAPED.sub(lambda found: bytes([int(found[1], 16)]), rest.split(b"\n", 1)[0])
    lines = tuple(text.decode(errors="replace").split("\n"))
    return LogRecord(number, microseconds * 1000, priority >> 3, lines, caller)


class KernelLog:
    """Reader of the records that come after it was opened.

    read() never blocks. lost: records that were overwritten before they could be read. fd: becomes
    readable once when there is something to read, after arm(). clock: CLOCK_MONOTONIC in
    nanoseconds.
    """

    def __init__(self, descriptor: int, clock: Callable[[], int]) -> None:
        """descriptor: of /dev/kmsg, not blocking, at its end. It is closed by close()."""
        self.lost = 0
        self._descriptor, self._clock = descriptor, clock
        self._next: int | None = None
        self._tokens, self._filled_ns = float(MOST_A_SECOND), clock()
        self._epoll = select.epoll()
        self._watched = True
        try:
            self._epoll.register(descriptor, select.EPOLLIN | select.EPOLLONESHOT)
        except OSError:  # a regular file, in tests
            self._watched = False

    @classmethod
    def open(cls, clock: Callable[[], int], path: Path = KMSG) -> KernelLog:
        """Open the log behind its last record. OSError where that is not allowed."""
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            os.lseek(descriptor, 0, os.SEEK_END)
        except OSError:
            os.close(descriptor)
            raise
        return cls(descriptor, clock)

    @property
    def fd(self) -> int:
        """The descriptor that becomes readable; read() and arm() make it unreadable again."""
        return self._epoll.fileno()

    def read(self) -> list[LogRecord]:
        """Return the next records, MOST_A_READ at most and as many as MOST_A_SECOND leaves.

        Raises OSError where the kernel refuses to be read.
        """
        now = self._clock()
        earned = (now - self._filled_ns) / 1e9 * MOST_A_SECOND
        self._tokens, self._filled_ns = min(MOST_A_SECOND, self._tokens + earned), now
        found = list[LogRecord]()
        reads = 0
        while len(found) < MOST_A_READ and self._tokens >= 1 and reads < 2 * MOST_A_READ:
            reads += 1
            try:
                raw = os.read(self._descriptor, _LONGEST)
            except BlockingIOError:
                break
            except BrokenPipeError:  # overwritten: the next read goes on with the oldest record
                self.lost += self._next is None  # the first of them has no number to count from
                continue
            if not raw:
                break
            record = parse_record(raw)
            if record is None:
                self.lost += 1
                continue
            if self._next is not None:
                self.lost += max(0, record.number - self._next)
            self._next = record.number + 1
            self._tokens -= 1
            found.append(record)
        return found

    @property
    def wait_ns(self) -> int:
        """How long read() should not be called: until MOST_A_READ records may be read, or 0."""
        missing = MOST_A_READ - self._tokens
        return max(0, int(missing / MOST_A_SECOND * 1e9)) if self._tokens < 1 else 0

    def arm(self) -> None:
        """Let `fd` become readable, once, when there is something to read (again)."""
        if self._watched:
            self._epoll.modify(self._descriptor, select.EPOLLIN | select.EPOLLONESHOT)

    def take_wake_up(self) -> bool:
        """Return whether `fd` has become readable since arm(), and make it unreadable."""
        with contextlib.suppress(InterruptedError):
            return bool(self._epoll.poll(0))
        return False

    def close(self) -> None:
        """Close both descriptors."""
        self._epoll.close()
        os.close(self._descriptor)
