"""What systemd is told, where systemd started us: sd_notify(3), which is one datagram."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Mapping, MutableMapping, Sequence

log = logging.getLogger("rmapd")

_NAME = "rmapd"
_FDS_AT_ONCE = 200  # SCM_MAX_FD is 253
_FIRST = 3  # SD_LISTEN_FDS_START


class SystemdNotifier:
    """systemd, by NOTIFY_SOCKET; without one, nobody listens and nothing is sent. Only the judging thread may call alive()."""

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        name = environ.get("NOTIFY_SOCKET", "")
        self._address = f"\0{name[1:]}" if name.startswith("@") else name
        self._deaf = False

    def ready(self, status: str) -> None:
        """The gate is open (again, after reloading())."""
        self._send(f"READY=1\nSTATUS={status}")

    def alive(self, status: str) -> None:
        """Another turn of the judging loop is done: without it for WatchdogSec, systemd kills and restarts us."""
        self._send(f"WATCHDOG=1\nSTATUS={status}")

    def keep(self, descriptors: Sequence[int]) -> None:
        """systemd holds these (sd_pid_notify_with_fds(3)) for the next start, should this process die: taken_back() has them then."""
        for first in range(0, len(descriptors), _FDS_AT_ONCE):
            self._send(
                f"FDSTORE=1\nFDNAME={_NAME}\nFDPOLL=0", descriptors[first : first + _FDS_AT_ONCE]
            )

    def forget(self) -> None:
        """It lets go of them."""
        self._send(f"FDSTOREREMOVE=1\nFDNAME={_NAME}")

    def reloading(self) -> None:
        self._send(
            f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}\nSTATUS=reading the configuration"
        )

    def stopping(self) -> None:
        self._send("STOPPING=1\nWATCHDOG=1\nSTATUS=judging what is left")

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
            if not self._deaf:
                log.warning("systemd does not hear us: %s", error)
            self._deaf = True


def taken_back(environ: MutableMapping[str, str] = os.environ) -> list[int]:
    """The descriptors that systemd kept, by the protocol of sd_listen_fds(3). Once: nobody after us is told of them."""
    given = {name: environ.pop(name, "") for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")}
    if given["LISTEN_PID"] != str(os.getpid()) or not given["LISTEN_FDS"].isdigit():
        return []
    found = []
    for number, name in enumerate(given["LISTEN_FDNAMES"].split(":")[: int(given["LISTEN_FDS"])]):
        os.set_inheritable(_FIRST + number, False)
        if name == _NAME:
            found.append(_FIRST + number)
        else:
            os.close(_FIRST + number)
    return found
