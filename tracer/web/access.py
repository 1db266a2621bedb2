"""The web configuration in force; it is reloaded when its files change, without a restart."""

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
_Stamp = tuple[tuple[int, ...], ...]


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach the address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Access:
    """The access rules and the TLS context in force.

    path: the web configuration; without one everybody may read over plain HTTP. If a file becomes
    invalid later, an error is logged and the rules stay as they are. RmapdError if it is invalid
    at the start. clock: monotonic seconds. taken: whether the last reading was taken over.
    """

    def __init__(self, path: Path | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._path, self._clock = path, clock
        self.rules, self.context = Rules(), None
        self.taken = True
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
        """Return inode, size, mtime and ctime of each file; ctime is that of its mode and owner."""
        found = []
        for name in filter(None, self._files()):
            try:
                seen = Path(name).stat()
                found.append((seen.st_ino, seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns))
            except OSError:
                found.append((0, 0, 0, 0))
        return tuple(found)

    def refresh(self) -> None:
        """Reload files that changed, once they are unchanged for a second.

        A certificate and its key are two files that are replaced one after the other.
        """
        if self._path is None or self._clock() - self._looked < LOOK_SECONDS:
            return
        self._looked = self._clock()
        before, self._seen = self._seen, self._look()
        if self._seen == before and self._seen != self._stamp:
            self.reread()

    def reread(self) -> None:
        """Reload the files now."""
        if self._path is None:
            return
        self.taken = False
        try:
            rules, context = self._read(self._path)
            if (context is None) != (self.context is None):
                raise RmapdError(
                    f"{self._path} cannot turn TLS on or off while rmapd runs",
                    hint="a restart",
                )
        except RmapdError as error:
            log.error("the access rules stay unchanged: %s", error.in_a_line)
        else:
            self.rules, self.context = rules, context
            log.info("%s is reloaded: %s", self._path, self.in_a_line())
            self.taken = True
        self._stamp = self._seen = self._look()

    def unreadable(self) -> str:
        """Return why reread() would fail now, or an empty text."""
        try:
            if self._path:
                self._read(self._path)
        except RmapdError as error:
            return str(error)
        return ""

    def in_a_line(self) -> str:
        """Return TLS policy and number of users for the log."""
        named = self.rules.tls
        parts = [
            f"TLS, {named.client_auth_type}" if named else "no TLS",
            f"{len(self.rules.users)} users",
        ]
        return ", ".join(parts)

    def concerns(self, host: str) -> list[str]:
        """Return warnings for an operator who listens on this host under these rules."""
        found = list(self.rules.notes)
        if not is_loopback(host):
            if not self.rules.identifies_readers:
                found.append(
                    f"anyone who can reach {host} may read all findings: "
                    "set users or client certificates in web_config"
                )
            if not self.rules.tls:
                found.append(f"traffic on {host} is not encrypted: set up TLS in web_config")
        if self.rules.users and not self.rules.tls:
            found.append(
                "passwords are not encrypted: basic_auth_users is set without tls_server_config"
            )
        return found
