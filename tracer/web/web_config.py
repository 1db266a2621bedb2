"""Read and check a web configuration of the Prometheus exporter toolkit.

The keys have the names and the meaning of the toolkit's docs/web-configuration.md. A setting that
Python's ssl or this server does not support is an error.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import yaml

from tracer import bounded_input
from tracer.errors import RmapdError

MOST_COST = 14
"""The highest cost of a bcrypt hash: a login then takes about one CPU second, and each step more
doubles it."""
_HASH = re.compile(r"\$2[aby]\$(\d\d)\$[./A-Za-z0-9]{53}")
_HEADERS: Mapping[str, tuple[str, ...]] = {
    "Strict-Transport-Security": (),
    "X-Content-Type-Options": ("nosniff",),
    "X-Frame-Options": ("deny", "sameorigin"),
    "X-XSS-Protection": (),
    "Content-Security-Policy": (),
}
"""Headers that may be set, with their allowed values; none means any value."""
CLIENT_AUTH = ("NoClientCert", "VerifyClientCertIfGiven", "RequireAndVerifyClientCert")
_UNVERIFIED = ("RequestClientCert", "RequireAnyClientCert", "RequireClientCert")
VERSIONS = ("TLS12", "TLS13")
CURVES = {"CurveP256": "prime256v1", "CurveP384": "secp384r1", "CurveP521": "secp521r1"}
CIPHERS = {
    f"TLS_ECDHE_{key}_WITH_{go}": f"ECDHE-{key}-{openssl}"
    for key in ("ECDSA", "RSA")
    for go, openssl in (
        ("AES_128_GCM_SHA256", "AES128-GCM-SHA256"),
        ("AES_256_GCM_SHA384", "AES256-GCM-SHA384"),
        ("CHACHA20_POLY1305_SHA256", "CHACHA20-POLY1305"),
        ("CHACHA20_POLY1305", "CHACHA20-POLY1305"),
    )
}
"""The secure cipher suites of TLS 1.2 by Go's name, with OpenSSL's; those of TLS 1.3 are fixed."""


class Tls(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """tls_server_config."""

    cert_file: str = ""
    key_file: str = ""
    client_auth_type: str = "NoClientCert"
    client_ca_file: str = ""
    client_allowed_sans: list[str] = []
    min_version: str = "TLS12"
    max_version: str = "TLS13"
    cipher_suites: list[str] = []
    prefer_server_cipher_suites: bool = True
    curve_preferences: list[str] = []
    cert: str = ""
    key: str = ""
    client_ca: str = ""


class Http(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """http_server_config."""

    http2: bool | None = None
    headers: dict[str, str] = {}


class WebConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole file."""

    tls_server_config: Tls | None = None
    http_server_config: Http = Http()
    basic_auth_users: dict[str, str] = {}
    rate_limit: dict[str, Any] | None = None


@dataclass(frozen=True)
class Rules:
    """The checked configuration.

    tls: None for plain HTTP; its file names are absolute. users: bcrypt hashes by name. notes:
    warnings for the log.
    """

    tls: Tls | None = None
    users: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def identifies_readers(self) -> bool:
        """Whether a reader needs a password or a certificate."""
        return bool(self.users) or (
            self.tls is not None and self.tls.client_auth_type == "RequireAndVerifyClientCert"
        )


class _Strict(yaml.SafeLoader):
    """A loader that rejects duplicate keys, as the toolkit does.

    Otherwise a second list of users would silently replace the first.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Return the mapping of a node; ConstructorError if a key is duplicate."""
        seen: set[object] = set()
        for key, _ in node.value:
            name = self.construct_object(key, deep=True)
            if name in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"duplicate key {name}", key.start_mark
                )
            seen.add(name)
        return super().construct_mapping(node, deep)


def read(path: Path) -> Rules:
    """Read the file and check it; RmapdError names the file, the key and a valid value."""
    try:
        text = bounded_input.text(path, "the web configuration", bounded_input.MOST_CONFIGURATION)
        given = yaml.load(text, Loader=_Strict) or {}  # noqa: S506 -- a SafeLoader
        config = msgspec.convert(given, WebConfig)
    except (
        yaml.YAMLError,
        ValueError,
        TypeError,
        RecursionError,
        msgspec.ValidationError,
    ) as error:
        raise RmapdError(
            f"the web configuration {path} is wrong",
            why=_in_a_line(error),
            hint=_known_key(str(error)),
        ) from error
    return _Check(path).rules(config)


def _in_a_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _known_key(message: str) -> str:
    """Return the known key that is most like an unknown one in the message."""
    known = [name for part in (WebConfig, Http, Tls) for name in part.__struct_fields__]
    unknown = re.search(r"unknown field `(\w+)`", message)
    near = difflib.get_close_matches(unknown[1], known, 1) if unknown else []
    return near[0] if near else "docs/ACCESS.md has every key"


class _Check:
    """Makes rules of a file's content; RmapdError if a setting is invalid."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def _wrong(self, key: str, why: str, hint: str) -> RmapdError:
        return RmapdError(
            f"{key} in the web configuration {self._path} is wrong", why=why, hint=hint
        )

    def rules(self, config: WebConfig) -> Rules:
        if config.rate_limit is not None:
            why = "not supported: rmapd limits connections, request times and its CPU time itself"
            raise self._wrong("rate_limit", why, "leave it out")
        self._headers(config.http_server_config.headers)
        for user, given in config.basic_auth_users.items():
            self._user(user, given)
        notes = (
            ("http2: this server speaks HTTP/1.1 only",) if config.http_server_config.http2 else ()
        )
        tls = self._tls(config.tls_server_config) if config.tls_server_config is not None else None
        return Rules(
            tls, dict(config.basic_auth_users), dict(config.http_server_config.headers), notes
        )

    def _headers(self, headers: Mapping[str, str]) -> None:
        for name, value in headers.items():
            if name not in _HEADERS:
                raise self._wrong(
                    f"headers: {name}", "this header cannot be set", f"one of {', '.join(_HEADERS)}"
                )
            if value and _HEADERS[name] and value not in _HEADERS[name]:
                raise self._wrong(
                    f"headers: {name}",
                    f"{value!r} is not one of {', '.join(_HEADERS[name])}",
                    _HEADERS[name][0],
                )
            if not value.isprintable() or not value.isascii():
                raise self._wrong(
                    f"headers: {name}", "not plain text in one line", "printable ASCII"
                )

    def _user(self, user: str, given: str) -> None:
        hashed = _HASH.fullmatch(given)
        hint = "htpasswd -nBC 10 '' | tr -d ':\\n'"
        if not user or ":" in user:
            raise self._wrong(
                "basic_auth_users",
                f"{user!r} cannot be a user's name: empty or with a colon",
                "another name",
            )
        if not hashed:
            raise self._wrong(f"basic_auth_users: {user}", "not a bcrypt hash", hint)
        if not 4 <= int(hashed[1]) <= MOST_COST:
            why = (
                f"cost {int(hashed[1])} is not between 4 and {MOST_COST}: "
                "each guess at a password would take much CPU time"
            )
            raise self._wrong(f"basic_auth_users: {user}", why, hint)

    def _tls(self, tls: Tls) -> Tls:
        for name, instead in (
            ("cert", "cert_file"),
            ("key", "key_file"),
            ("client_ca", "client_ca_file"),
        ):
            if getattr(tls, name):
                raise self._wrong(name, "not supported: Python's ssl reads files", instead)
        for name in ("cert_file", "key_file"):
            if not getattr(tls, name):
                raise self._wrong(
                    name,
                    "missing, and TLS needs it",
                    "openssl req -x509 -newkey …, or leave out tls_server_config",
                )
        self._client(tls)
        for name in ("min_version", "max_version"):
            self._one_of(
                name, getattr(tls, name), VERSIONS, "older versions are insecure, not supported"
            )
        if tls.min_version > tls.max_version:
            raise self._wrong(
                "min_version",
                f"{tls.min_version} is above max_version {tls.max_version}",
                "TLS12 and TLS13",
            )
        for suite in tls.cipher_suites:
            self._one_of(
                "cipher_suites",
                suite,
                tuple(CIPHERS),
                "not supported here, or not a suite of TLS 1.2",
            )
        for curve in tls.curve_preferences:
            self._one_of("curve_preferences", curve, tuple(CURVES), "not supported by Python's ssl")
        if len(tls.curve_preferences) > 1:
            raise self._wrong(
                "curve_preferences",
                "not supported: Python's ssl takes one curve",
                tls.curve_preferences[0],
            )
        here = self._path.absolute().parent
        files = {
            name: str(here / getattr(tls, name))
            for name in ("cert_file", "key_file", "client_ca_file")
            if getattr(tls, name)
        }
        return msgspec.structs.replace(tls, **files)

    def _client(self, tls: Tls) -> None:
        if tls.client_auth_type in _UNVERIFIED:
            why = (
                f"{tls.client_auth_type} is not supported: it accepts unverified certificates, "
                "and Python's ssl cannot do that"
            )
            raise self._wrong("client_auth_type", why, "RequireAndVerifyClientCert")
        self._one_of("client_auth_type", tls.client_auth_type, CLIENT_AUTH, "not a policy")
        verifies = tls.client_auth_type != "NoClientCert"
        if verifies and not tls.client_ca_file:
            raise self._wrong(
                "client_ca_file",
                f"missing, and {tls.client_auth_type} needs it",
                "the CA that signed the clients' certificates",
            )
        if not verifies and (tls.client_ca_file or tls.client_allowed_sans):
            raise self._wrong(
                "client_auth_type",
                "there is a client CA or SAN, but no certificate is requested",
                "RequireAndVerifyClientCert",
            )

    def _one_of(self, key: str, value: str, known: tuple[str, ...], why: str) -> None:
        if value not in known:
            near = difflib.get_close_matches(value, known, 1, cutoff=0.8)
            raise self._wrong(
                key, f"{value!r}: {why}", near[0] if near else f"one of {', '.join(known)}"
            )
