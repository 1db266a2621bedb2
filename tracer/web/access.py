"""The rules in force, read again when their files change: certificates are renewed and users removed without a restart."""

from __future__ import annotations

import ipaddress
import logging
import ssl
import time
from collections.abc import Callable
from pathlib import Path

from tracer.errors import RmapdError
from tracer.web import tls
from tracer.web.web_config import Rules, read

log = logging.getLogger("rmapd")

LOOK_SECONDS = 1.0
_Stamp = tuple[tuple[int, int, int], ...]


def is_loopback(host: str) -> bool:
    """An address that only this machine reaches."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Access:
    """Without a file everybody may read, by plain HTTP. A file that becomes wrong changes nothing but the log."""

    def __init__(self, path: Path | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._path, self._clock = path, clock
        self.rules, self.context = Rules(), None
        self._looked = self._clock()
        if path:
            self.rules, self.context = self._read(path)
        self._stamp = self._seen = self._look()

    @staticmethod
    def _read(path: Path) -> tuple[Rules, ssl.SSLContext | None]:
        rules = read(path)
        return rules, tls.context(rules.tls) if rules.tls else None

    def _files(self) -> list[str]:
        named = self.rules.tls
        return [str(self._path)] + (
            [named.cert_file, named.key_file, named.client_ca_file] if named else []
        )

    def _look(self) -> _Stamp:
        """What the files look like from outside."""
        found = []
        for name in filter(None, self._files()):
            try:
                seen = Path(name).stat()
                found.append((seen.st_ino, seen.st_size, seen.st_mtime_ns))
            except OSError:
                found.append((0, 0, 0))
        return tuple(found)

    def refresh(self) -> None:
        """Read again what changed, once it has not changed for a second: a certificate and its key are two files."""
        if self._path is None or self._clock() - self._looked < LOOK_SECONDS:
            return
        self._looked = self._clock()
        before, self._seen = self._seen, self._look()
        if self._seen == before and self._seen != self._stamp:
            self.reread()

    def reread(self) -> None:
        """Read again now."""
        if self._path is None:
            return
        try:
            rules, context = self._read(self._path)
            if (context is None) != (self.context is None):
                raise RmapdError(
                    f"TLS cannot be turned on or off by {self._path} while rmapd runs",
                    hint="a restart",
                )
        except RmapdError as error:
            log.error("who may read stays as it was: %s", error.in_a_line)
        else:
            self.rules, self.context = rules, context
            log.info("%s read again: %s", self._path, self.in_a_line())
        self._stamp = self._seen = self._look()

    def unreadable(self) -> str:
        """Why reread() would change nothing now, or empty."""
        try:
            if self._path:
                self._read(self._path)
        except RmapdError as error:
            return str(error)
        return ""

    def in_a_line(self) -> str:
        named = self.rules.tls
        parts = [
            f"TLS, {named.client_auth_type}" if named else "no TLS",
            f"{len(self.rules.users)} users",
        ]
        return ", ".join(parts)

    def concerns(self, host: str) -> list[str]:
        """What an operator should know of these rules on this address."""
        found = list(self.rules.notes)
        if not is_loopback(host):
            if not self.rules.asks_who:
                found.append(
                    f"anybody who reaches {host} may read what rmapd knows: web_config has users and client certificates"
                )
            if not self.rules.tls:
                found.append(
                    f"what rmapd tells on {host} goes over the network in clear: web_config has TLS"
                )
        if self.rules.users and not self.rules.tls:
            found.append("passwords are sent in clear: basic_auth_users without tls_server_config")
        return found
