"""Where a daemon serves: from a URL, or from the configuration of the daemon on this host."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from tracer.config import Config
from tracer.errors import RmapdError

_PORTS = {"http": 80, "https": 443}
_ANY = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1", "*": "127.0.0.1"}  # noqa: S104
"""Addresses that a daemon listens on, and the one that reaches it from its own host."""


@dataclass(frozen=True)
class Address:
    """The root of a daemon's paths.

    host: without brackets. base: the path before /api/v1, without a slash at its end. certificate:
    a file with the certificate that the daemon on this host serves, where its configuration names
    it; then no other one is accepted, whatever its name is.
    """

    scheme: str
    host: str
    port: int
    base: str = ""
    certificate: Path | None = None

    @property
    def url(self) -> str:
        """The URL, without the port where the scheme implies it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = "" if self.port == _PORTS[self.scheme] else f":{self.port}"
        return f"{self.scheme}://{host}{port}{self.base}"

    @property
    def secure(self) -> bool:
        """Whether nobody on the way can read: TLS, or this host itself."""
        if self.scheme == "https" or self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host.partition("%")[0]).is_loopback
        except ValueError:
            return False


def from_url(url: str) -> Address:
    """Return the address that a URL names. Raises RmapdError where it is none."""

    def wrong(why: str, hint: str = "https://HOST:9743") -> RmapdError:
        # The URL may have a password in it: it is not repeated.
        return RmapdError("the URL of the daemon is wrong", why=why, hint=hint)

    try:
        parts = urlsplit(url.strip())
        port = parts.port
    except ValueError as error:
        raise wrong(str(error)) from error
    if parts.username is not None or parts.password is not None:
        raise wrong(
            "it has a user or a password in it, and every user of this machine can read command"
            " lines",
            "--user NAME --password-file FILE",
        )
    if parts.scheme not in _PORTS:
        raise wrong(f"{url!r} does not begin with http:// or https://")
    if not parts.hostname or re.search(r"[\s/\\]", parts.hostname):
        raise wrong(f"{url!r} names no host")
    if parts.query or parts.fragment:
        raise wrong(f"{url!r} has a query or a fragment")
    chosen = _PORTS[parts.scheme] if port is None else port
    return Address(parts.scheme, parts.hostname, chosen, parts.path.rstrip("/"))


def from_configuration(settings: Config) -> Address:
    """Return the address of the daemon that runs on this host with this configuration.

    Its web configuration, if it has one, decides between http and https. Raises RmapdError where
    that file cannot be read, or the port is chosen when the daemon starts.
    """
    host, port = settings.address
    if not port:
        raise RmapdError(
            "the address of the daemon is not known",
            why=f"it listens on {settings.listen}: its port is chosen when it starts",
            hint="--url with the URL that it logs",
        )
    host = _ANY.get(host, host)
    if not settings.web_config:
        return Address("http", host, port)
    from tracer.web.web_config import read

    try:
        tls = read(Path(settings.web_config)).tls
    except RmapdError as error:
        why = f"its configuration names {settings.web_config}: {error.why or error.what}"
        raise RmapdError(
            "whether the daemon speaks TLS is not known",
            why=why,
            hint=f"--url https://{host}:{port}",
        ) from error
    if not tls:
        return Address("http", host, port)
    return Address("https", host, port, certificate=Path(tls.cert_file))
