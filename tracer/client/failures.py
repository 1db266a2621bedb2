"""Why a daemon gave no answer, and what to try: exceptions and statuses as errors for people.

Unreachable: no daemon answers, or not yet; another time may help. RmapdError: what the client was
given is wrong, and every further try would fail alike.
"""

from __future__ import annotations

import socket
import ssl

import urllib3.exceptions as u3

from tracer.client.address import Address
from tracer.errors import RmapdError, Unreachable

_NAMES = {62: "hostname", 64: "IP address"}
"""X509_V_ERR_HOSTNAME_MISMATCH and X509_V_ERR_IP_ADDRESS_MISMATCH of OpenSSL."""
_PORT = 9743
_CERTIFICATE = "--cert-file FILE --key-file FILE, where its configuration has a client_ca_file"
"""A daemon that wants a certificate closes the connection: with TLS 1.3 after the handshake."""


def of_exception(error: Exception, address: Address, timeout: float) -> RmapdError:
    """Return the error for an exception of urllib3. timeout: that was set, in seconds."""
    what, cause = f"cannot read from rmapd at {address.url}", _cause(error)
    if isinstance(cause, ssl.SSLCertVerificationError):
        return _untrusted(cause, what)
    if "Fingerprints did not match" in str(cause):
        return RmapdError(
            what,
            why=f"it does not serve the certificate in {address.certificate}, which its"
            " configuration names: another program may listen there",
            hint="systemctl status rmapd; --url with --ca-file FILE",
        )
    if isinstance(cause, ssl.SSLError):
        return _tls(cause, what, address)
    if isinstance(cause, u3.NameResolutionError | socket.gaierror):
        return Unreachable(what, why=f"the name {address.host} is not known", hint="its address")
    if isinstance(cause, u3.TimeoutError | TimeoutError):
        return Unreachable(
            what, why=f"no answer within {timeout:g} s", hint="--timeout SECONDS, with more of them"
        )
    if isinstance(cause, ConnectionRefusedError):
        return Unreachable(what, why="nothing listens there", hint=_start(address))
    why = (cause.strerror if isinstance(cause, OSError) else "") or str(cause)
    hint = "https, if it speaks TLS" if address.scheme == "http" else _CERTIFICATE
    return Unreachable(what, why=f"the connection ended: {why}", hint=hint)


def _start(address: Address) -> str:
    if address.port != _PORT:
        return (
            f"--url with port {_PORT}, where rmapd listens by default; systemctl status rmapd there"
        )
    return "systemctl status rmapd there; --url URL where it listens elsewhere"


def _cause(error: BaseException) -> BaseException:
    """Return the innermost exception that has a meaning of its own."""
    for inner in (error.__cause__, *getattr(error, "args", ())):
        if isinstance(inner, OSError | u3.HTTPError) and inner is not error:
            return _cause(inner)
    return error


def _untrusted(error: ssl.SSLCertVerificationError, what: str) -> RmapdError:
    if error.verify_code in _NAMES:
        hint = "--server-name with the name that it has"
        return RmapdError(
            what, why=f"its certificate has another name: {error.verify_message}", hint=hint
        )
    return RmapdError(
        what,
        why=f"its certificate is not trusted: {error.verify_message}",
        hint="--ca-file FILE, with the CA that signed it",
    )


def _tls(error: ssl.SSLError, what: str, address: Address) -> RmapdError:
    reason = (error.reason or str(error)).replace("_", " ").lower()
    if error.reason in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "HTTP_REQUEST"):
        return RmapdError(what, why="it does not speak TLS", hint=f"--url http://{address.host}:…")
    if "certificate required" in reason or "handshake failure" in reason:
        return RmapdError(what, why="it wants a certificate of this client", hint=_CERTIFICATE)
    return RmapdError(what, why=f"TLS failed: {reason}")


def of_status(status: int, text: str, address: Address, *, login: bool) -> RmapdError:
    """Return the error for a response that is no answer.

    text: of the response. login: whether a login was sent.
    """
    what, shown = f"rmapd at {address.url} does not answer", " ".join(text.split())[:200]
    match status:
        case 401:
            why = "it refuses this user or password" if login else "it wants a user and a password"
            return RmapdError(what, why=why, hint="--user NAME --password-file FILE")
        case 403 | 421:
            return RmapdError(what, why=shown or f"status {status}")
        case 429:
            return Unreachable(what, why="too many clients log in at the same time", hint="later")
        case 503:
            return Unreachable(what, why=shown or "it is starting", hint="again in some seconds")
        case 404:
            return Unreachable(
                what,
                why="it has no such path",
                hint="the path of a proxy in --url, or an rmapd there that is as new as this one",
            )
    return Unreachable(what, why=f"status {status}: {shown}")


def of_content(error: Exception, address: Address) -> RmapdError:
    """Return the error for an answer that rmapd did not write."""
    return Unreachable(
        f"what answers at {address.url} is no rmapd of this version",
        why=str(error),
        hint="--url with the address of rmapd",
    )
