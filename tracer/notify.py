"""What systemd is told, where systemd started us: sd_notify(3), which is one datagram."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Mapping

log = logging.getLogger("rmapd")


class Supervisor:
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

    def reloading(self) -> None:
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}\nSTATUS=reading the configuration")

    def stopping(self) -> None:
        self._send("STOPPING=1\nWATCHDOG=1\nSTATUS=judging what is left")

    def _send(self, message: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as out:
                out.sendto(message.encode(), self._address)
        except OSError as error:
            if not self._deaf:
                log.warning("systemd does not hear us: %s", error)
            self._deaf = True
