"""Notifications to systemd that started this process: sd_notify(3), one datagram each."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Mapping, MutableMapping, Sequence

log = logging.getLogger("rmapd")

_NAME = "rmapd"
_FDS_PER_MESSAGE = 200  # SCM_MAX_FD is 253
_LISTEN_FDS_START = 3


class SystemdNotifier:
    """Sends to the socket in NOTIFY_SOCKET; does nothing where that is not set."""

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        name = environ.get("NOTIFY_SOCKET", "")
        self._address = f"\0{name[1:]}" if name.startswith("@") else name
        self._warned = False

    def ready(self, status: str) -> None:
        """Report that the gate is open (again, after reloading()), with a line of status."""
        self._send(f"READY=1\nSTATUS={status}")

    def alive(self, status: str) -> None:
        """Report a turn of the event loop. Call it in that loop only.

        systemd kills and restarts a service that does not report for WatchdogSec.
        """
        self._send(f"WATCHDOG=1\nSTATUS={status}")

    def working(self) -> None:
        """Report progress within a turn of the event loop that takes long."""
        self._send("WATCHDOG=1")

    def store_descriptors(self, descriptors: Sequence[int]) -> None:
        """Let systemd keep descriptors for the next start, should this process die.

        That start gets them from take_stored_descriptors(): sd_pid_notify_with_fds(3).
        """
        for first in range(0, len(descriptors), _FDS_PER_MESSAGE):
            self._send(
                f"FDSTORE=1\nFDNAME={_NAME}\nFDPOLL=0",
                descriptors[first : first + _FDS_PER_MESSAGE],
            )

    def remove_stored_descriptors(self) -> None:
        """Let systemd close the descriptors that it keeps."""
        self._send(f"FDSTOREREMOVE=1\nFDNAME={_NAME}")

    def reloading(self) -> None:
        """Report that the configuration is being read; ready() ends that."""
        now = time.monotonic_ns() // 1000
        self._send(f"RELOADING=1\nMONOTONIC_USEC={now}\nSTATUS=reading the configuration")

    def stopping(self) -> None:
        """Report that the service is about to end."""
        self._send("STOPPING=1\nWATCHDOG=1\nSTATUS=checking what is left")

    def _send(self, message: str, descriptors: Sequence[int] = ()) -> None:
        if not self._address:
            return
        try:
            with socket.socket(
                socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
            ) as out:
                out.connect(self._address)
                socket.send_fds(out, [message.encode()], descriptors)
        except OSError as error:
            if not self._warned:
                log.warning("cannot notify systemd: %s", error)
            self._warned = True


def take_stored_descriptors(environ: MutableMapping[str, str] = os.environ) -> list[int]:
    """Return the descriptors that systemd kept, by the protocol of sd_listen_fds(3).

    The variables are removed, so a second call and our children get none. Descriptors of other
    names are closed.
    """
    given = {name: environ.pop(name, "") for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")}
    if given["LISTEN_PID"] != str(os.getpid()) or not given["LISTEN_FDS"].isdigit():
        return []
    found = []
    for number, name in enumerate(given["LISTEN_FDNAMES"].split(":")[: int(given["LISTEN_FDS"])]):
        fd = _LISTEN_FDS_START + number
        os.set_inheritable(fd, False)
        if name == _NAME:
            found.append(fd)
        else:
            os.close(fd)
    return found
