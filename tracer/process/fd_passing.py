"""What comes through a Unix socket from a process of our own: bytes of a known length, and file descriptors."""

from __future__ import annotations

import signal
import socket
from collections.abc import Sequence

from tracer.errors import Defect, RmapdError, Temporary

_FDS_AT_ONCE = 64  # SCM_MAX_FD is 253


def exactly(ours: socket.socket, size: int) -> bytes:
    """That many bytes, or fewer where the other side died."""
    parts = bytearray()
    while len(parts) < size and (part := ours.recv(min(size - len(parts), 1 << 16))):
        parts += part
    return bytes(parts)


def died(what: str, code: int, hint: str, said: str = "") -> RmapdError:
    """A process of ours ended with this code before it answered. SIGKILL is what the kernel sends where memory is short: it may pass.
    Anything else is a defect; said: its last words."""
    if code == -signal.SIGKILL:
        return Temporary(what, why="it died of SIGKILL, as where memory is short", hint=hint)
    return Defect(
        what,
        why=said
        or (f"it died of {signal.Signals(-code).name}" if code < 0 else f"it ended with {code}"),
        hint="report it",
    )


def send_descriptors(theirs: socket.socket, fds: Sequence[int]) -> None:
    for first in range(0, len(fds), _FDS_AT_ONCE):
        socket.send_fds(theirs, [b"m"], fds[first : first + _FDS_AT_ONCE])


def receive_descriptors(ours: socket.socket, count: int) -> list[int]:
    """Raises RmapdError where fewer come."""
    found: list[int] = []
    while len(found) < count:
        _, fds, _, _ = socket.recv_fds(ours, 1, _FDS_AT_ONCE)
        if not fds:
            raise Temporary(
                "a process of ours died while it handed over",
                why=f"{len(found)} of {count} file descriptors came",
            )
        found += fds
    return found
