"""The TLS context of the web configuration, and which client certificates are accepted."""

from __future__ import annotations

import ipaddress
import os
import ssl
from collections.abc import Collection, Mapping
from typing import Any

from tracer.errors import RmapdError
from tracer.web.web_config import CIPHERS, CURVES, Tls

_VERSIONS = {"TLS12": ssl.TLSVersion.TLSv1_2, "TLS13": ssl.TLSVersion.TLSv1_3}
_VERIFY = {
    "NoClientCert": ssl.CERT_NONE,
    "VerifyClientCertIfGiven": ssl.CERT_OPTIONAL,
    "RequireAndVerifyClientCert": ssl.CERT_REQUIRED,
}


def context(tls: Tls) -> ssl.SSLContext:
    """Read certificate, key and CA, and return the context; RmapdError if they cannot be used."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.minimum_version, made.maximum_version = (
        _VERSIONS[tls.min_version],
        _VERSIONS[tls.max_version],
    )
    made.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION | ssl.OP_SINGLE_ECDH_USE
    if tls.prefer_server_cipher_suites:
        made.options |= ssl.OP_CIPHER_SERVER_PREFERENCE
    made.set_alpn_protocols(["http/1.1"])
    made.set_ciphers(
        ":".join(dict.fromkeys(CIPHERS[name] for name in tls.cipher_suites or CIPHERS))
    )
    if tls.curve_preferences:
        made.set_ecdh_curve(CURVES[tls.curve_preferences[0]])
    for name in filter(os.path.exists, (tls.cert_file, tls.key_file, tls.client_ca_file)):
        if not os.path.isfile(name):  # OpenSSL would block on a pipe
            raise RmapdError(
                f"{name} cannot be used for TLS",
                why="it is not a regular file",
                hint="a PEM file that rmapd may read",
            )
    try:
        made.load_cert_chain(tls.cert_file, tls.key_file, password=_no_password)
    except (OSError, ValueError) as error:
        files = f"{tls.cert_file} and {tls.key_file}"
        hint = "a certificate and its key, without a password, as PEM files that rmapd may read"
        raise RmapdError(
            f"the certificate and key {files} cannot be used", why=_why(error), hint=hint
        ) from error
    if tls.client_ca_file:
        try:
            made.load_verify_locations(cafile=tls.client_ca_file)
        except (OSError, ValueError) as error:
            hint = "certificates as PEM in a file that rmapd may read"
            raise RmapdError(
                f"the client CA {tls.client_ca_file} cannot be used", why=_why(error), hint=hint
            ) from error
    made.verify_mode = _VERIFY[tls.client_auth_type]
    return made


def _no_password() -> str:
    """Fail, where OpenSSL would ask on the terminal."""
    raise ValueError("the key has a password")


def _why(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else "") or str(error)


def is_accepted(certificate: Mapping[str, Any] | None, allowed: Collection[str]) -> bool:
    """Return whether an alternative name of the certificate is allowed.

    allowed: the names of client_allowed_sans; if it is empty, every client is accepted.
    """
    if not allowed:
        return True
    return any(
        _plain(kind, str(value)) in allowed
        for kind, value in (certificate or {}).get("subjectAltName", ())
    )


def _plain(kind: str, value: str) -> str:
    """Return a name as the web configuration writes it: ssl writes IPv6 addresses in full."""
    if kind != "IP Address":
        return value
    try:
        return str(ipaddress.ip_address(value.strip()))
    except ValueError:
        return value
