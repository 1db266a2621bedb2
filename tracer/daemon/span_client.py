"""The other end of a span: how `rmapd exec` reaches the daemon that runs, and what it asks."""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

import tracer
from tracer.daemon.span_messages import (
    MOST_ANSWERED_BYTES,
    WIRE,
    Answer,
    Asked,
    Greeting,
    decode_answer,
    decode_greeting,
    decode_version,
    encode,
)
from tracer.errors import RmapdError, Temporary
from tracer.process import local_socket

_GREETING_SECONDS = 30.0
"""The daemon's loop may be busy; exec waits no longer than that for the first answer."""
SILENT_SECONDS = 60.0
"""A daemon that answers nothing for this long hangs."""


class DaemonGone(Exception):
    """The daemon died or ended, or it hangs: the reason, in words."""


class DaemonConnection:
    """A connection to the daemon. greeting: who it is. clock: monotonic seconds.

    Nothing here waits but greeting and ask().
    """

    def __init__(
        self,
        connection: socket.socket,
        greeting: Greeting,
        inbox: local_socket.Inbox,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.greeting, self._connection, self._inbox = greeting, connection, inbox
        self._clock, self._waits_since, self._patience = clock, 0.0, SILENT_SECONDS
        connection.setblocking(False)
        self.waiting = False

    @property
    def fd(self) -> int:
        """Readable when an answer arrives, or the daemon is gone."""
        return self._connection.fileno()

    def send(self, asked: Asked) -> None:
        """Ask; one request at a time. Raises DaemonGone."""
        self.waiting, self._waits_since = True, self._clock()
        try:
            self._connection.sendall(local_socket.framed(encode(asked)))
        except OSError as error:
            raise DaemonGone(self._ended()) from error

    def received(self) -> Answer | None:
        """Return the answer if it has arrived. Raises DaemonGone.

        A daemon that ends sends a Report without being asked.
        """
        message = self._inbox.next()
        while message is None:
            raw = local_socket.received(self._connection)
            if raw is None:
                silent = self._clock() - self._waits_since
                if self.waiting and silent > self._patience:
                    raise DaemonGone(
                        f"the daemon (pid {self.greeting.pid}) has not answered for {silent:.0f} s"
                    )
                return None
            if not raw:
                raise DaemonGone(self._ended())
            self._inbox.add(raw)
            message = self._inbox.next()
        self.waiting, self._patience = False, SILENT_SECONDS
        try:
            return decode_answer(message)
        except msgspec.DecodeError as error:
            raise DaemonGone(f"the daemon's answer cannot be read: {error}") from error

    def wait_longer(self, seconds: float) -> None:
        """Allow the daemon this much more time for the answer that is waited for."""
        self._patience = SILENT_SECONDS + seconds

    def wait(self, descriptors: list[int], seconds: float) -> None:
        """Wait for an answer, for one of these descriptors, or for the time."""
        poll = select.poll()
        for fd in (self.fd, *descriptors):
            poll.register(fd, select.POLLIN)
        poll.poll(max(0.0, seconds) * 1000)

    def close(self) -> None:
        """Close the connection; the daemon forgets the span."""
        self._connection.close()

    def _ended(self) -> str:
        return f"the daemon (pid {self.greeting.pid}) died or was restarted"


def connect(
    lock_file: Path, clock: Callable[[], float] = time.monotonic
) -> DaemonConnection | None:
    """Connect to the daemon that holds this lock file; None where there is none.

    clock: monotonic seconds. Raises Temporary where it is busy with others, RmapdError where it is
    of another version or does not serve this user.
    """
    connection = local_socket.connect(lock_file, _GREETING_SECONDS)
    if connection is None:
        return None
    inbox = local_socket.Inbox(MOST_ANSWERED_BYTES)
    try:
        greeting = _greeting(connection, inbox)
    except (RmapdError, OSError):
        connection.close()
        raise
    return DaemonConnection(connection, greeting, inbox, clock)


def _greeting(connection: socket.socket, inbox: local_socket.Inbox) -> Greeting:
    try:
        while (message := inbox.next()) is None:
            raw = connection.recv(1 << 16)
            if not raw:
                raise Temporary("the daemon ended just now", hint="the same again")
            inbox.add(raw)
        version, wire, refused = decode_version(message)
        if refused:
            raise Temporary("the daemon refuses", why=refused, hint="the same again later")
        if (version, wire) != (tracer.__version__, WIRE):
            raise RmapdError(
                "the daemon that runs is another rmapd than this one",
                why=f"it is {version} (messages {wire}), this is {tracer.__version__} ({WIRE})",
                hint="restart the daemon: systemctl restart rmapd",
            )
        return decode_greeting(message)
    except TimeoutError as error:
        why = f"it did not answer within {_GREETING_SECONDS:g} s"
        raise Temporary("the daemon is busy", why=why, hint="rmapd status") from error
    except (msgspec.DecodeError, ValueError, OSError) as error:
        raise RmapdError(
            "the daemon's answer cannot be read", why=str(error), hint="restart the daemon"
        ) from error
