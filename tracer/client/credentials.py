"""What a client shows of itself, and how it knows the daemon: passwords, tokens, certificates.

Secrets come from files, from the environment or from the keyboard. They are no options, because
every user of a machine can read command lines.
"""

from __future__ import annotations

import base64
import logging
import os
import ssl
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tracer import bounded_input
from tracer.errors import RmapdError

log = logging.getLogger("rmapd")

PASSWORD, TOKEN = "RMAPD_API_PASSWORD", "RMAPD_API_TOKEN"
_MOST_BYTES = 16 * 1024
_SOURCES = f"--password-file FILE, or the variable {PASSWORD}"


@dataclass(frozen=True)
class Credentials:
    """How to ask a daemon.

    authorization: the header's value, empty for none. ca_file: the only CA that is trusted; None:
    those of the system. cert_file, key_file: the client's own certificate. server_name: the name
    that the daemon's certificate must have, if not the host's.
    """

    authorization: str = field(default="", repr=False)
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    server_name: str = ""


@dataclass(frozen=True)
class LoginOptions:
    """A user with a file that has the password, or a file with a token."""

    user: str = ""
    password_file: Path | None = None
    token_file: Path | None = None


def authorization(
    options: LoginOptions, environ: Mapping[str, str], ask: Callable[[str], str] | None = None
) -> str:
    """Return the value of the header Authorization, or an empty text where nothing is given.

    ask: returns the password that a person types at this prompt; None: there is no terminal.
    Raises RmapdError for a user without a password, a password without a user, both a user and a
    token, or a file that cannot be used.
    """
    token = _secret(options.token_file, environ, TOKEN, "token")
    password = _secret(options.password_file, environ, PASSWORD, "password")
    if token and options.user:
        raise RmapdError(
            "cannot log in twice", why="a user and a token are given", hint="one of them"
        )
    if token:
        if not token.isascii() or not token.isprintable():
            raise RmapdError("the token is wrong", why="it is not printable ASCII")
        return f"Bearer {token}"
    if not options.user:
        if password is not None:
            raise RmapdError(
                "there is a password without a user", hint="--user NAME, or RMAPD_API_USER=NAME"
            )
        return ""
    if ":" in options.user:
        raise RmapdError(f"{options.user!r} cannot be a user's name", why="it has a colon")
    if password is None:
        if ask is None:
            raise RmapdError(
                f"there is no password for {options.user}",
                why="none is given, and there is no terminal to ask at",
                hint=_SOURCES,
            )
        password = ask(f"Password of {options.user}")
    both = f"{options.user}:{password}".encode()
    return f"Basic {base64.b64encode(both).decode()}"


def _secret(path: Path | None, environ: Mapping[str, str], variable: str, what: str) -> str | None:
    """Return the secret of a file, else of the environment, else None."""
    if path is None:
        return environ.get(variable) or None
    found = bounded_input.text(path, f"the {what} file", _MOST_BYTES).rstrip("\r\n")
    if not found:
        raise RmapdError(f"the {what} file {path} is wrong", why="it is empty")
    if "\n" in found:
        raise RmapdError(f"the {what} file {path} is wrong", why="it has more than one line")
    if _readable_by_all(path):
        log.warning("every user of this machine can read the %s in %s: chmod 600", what, path)
    return found


def _readable_by_all(path: Path) -> bool:
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return False
    return stat.S_ISREG(mode) and bool(mode & stat.S_IROTH)


def tls_context(credentials: Credentials, *, pinned: bool = False) -> ssl.SSLContext:
    """Return the context that checks the daemon's certificate and shows our own.

    pinned: the caller compares the certificate with a known one, instead of its name and CA. Raises
    RmapdError where a file cannot be used.
    """
    ca, cert, key = credentials.ca_file, credentials.cert_file, credentials.key_file
    if (cert is None) != (key is None):
        raise RmapdError(
            "a certificate of the client needs its key",
            why=f"only the {'key' if cert is None else 'certificate'} is given",
            hint="--cert-file FILE --key-file FILE",
        )
    for path in (ca, cert, key):
        if path is not None and path.exists() and not path.is_file():
            raise RmapdError(f"{path} cannot be used for TLS", why="it is not a regular file")
    try:
        made = ssl.create_default_context(cafile=str(ca) if ca else None)
    except (OSError, ValueError) as error:
        raise RmapdError(
            f"the CA {ca} cannot be used", why=_why(error), hint="certificates as PEM"
        ) from error
    if pinned:
        made.check_hostname, made.verify_mode = False, ssl.CERT_NONE
    if cert and key:
        try:
            made.load_cert_chain(cert, key, password=_no_password)
        except (OSError, ValueError) as error:
            raise RmapdError(
                f"the certificate {cert} and the key {key} cannot be used",
                why=_why(error),
                hint="a certificate and its key as PEM, without a password",
            ) from error
    return made


def _no_password() -> str:
    """Fail, where OpenSSL would ask on the terminal."""
    raise ValueError("the key has a password")


def _why(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else "") or str(error)


def fingerprint(path: Path) -> str:
    """Return the SHA-256 of the first certificate in a PEM file. RmapdError if there is none."""
    import hashlib

    hint = "--url with --ca-file FILE"
    text = bounded_input.text(path, "the daemon's certificate", 1 << 20, hint)
    begin, end = ssl.PEM_HEADER, ssl.PEM_FOOTER
    at = text.find(begin)
    stop = text.find(end, at)
    try:
        if at < 0 or stop < 0:
            raise ValueError("it has no certificate")
        der = ssl.PEM_cert_to_DER_cert(text[at : stop + len(end)] + "\n")
        if not der:
            raise ValueError("its first certificate is empty")
    except ValueError as error:
        raise RmapdError(
            f"the daemon's certificate {path} cannot be used", why=str(error), hint=hint
        ) from error
    return hashlib.sha256(der).hexdigest()
