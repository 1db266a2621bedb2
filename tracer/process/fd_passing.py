"""Receive exactly N bytes, or file descriptors (SCM_RIGHTS), from a child by a Unix socket."""

from __future__ import annotations

import signal
import socket
from collections.abc import Sequence

from tracer.errors import Defect, RmapdError, Temporary

_FDS_PER_MESSAGE = 64  # SCM_MAX_FD is 253


def receive_exactly(ours: socket.socket, size: int) -> bytes:
    """Receive `size` bytes, or fewer where the other process died."""
    parts = bytearray()
    while len(parts) < size and (part := ours.recv(min(size - len(parts), 1 << 16))):
        parts += part
    return bytes(parts)


def death_error(what: str, code: int, hint: str, last_output: str = "") -> RmapdError:
    """Make the error for a child that ended with this code (negative: a signal) without an answer.

    SIGKILL is Temporary: the kernel sends it where memory is short. Everything else is a Defect.
    """
    if code == -signal.SIGKILL:
        return Temporary(what, why="it died of SIGKILL, as where memory is short", hint=hint)
    ended = f"it died of {signal.Signals(-code).name}" if code < 0 else f"it ended with {code}"
    return Defect(what, why=last_output or ended, hint="report it")


def send_descriptors(theirs: socket.socket, fds: Sequence[int]) -> None:
    """Send file descriptors, some dozens in each message."""
    for first in range(0, len(fds), _FDS_PER_MESSAGE):
        socket.send_fds(theirs, [b"m"], fds[first : first + _FDS_PER_MESSAGE])


def receive_descriptors(ours: socket.socket, count: int) -> list[int]:
    """Receive `count` descriptors. Raises Temporary where the other process died before."""
    found: list[int] = []
    while len(found) < count:
        _, fds, _, _ = socket.recv_fds(ours, 1, _FDS_PER_MESSAGE)
        if not fds:
            raise Temporary(
                "a process of ours died while it handed over file descriptors",
                why=f"{len(found)} of {count} arrived",
            )
        found += fds
    return found
