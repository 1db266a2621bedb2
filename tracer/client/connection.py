"""The connection to a daemon's API: each request is bounded in time and size, and only reads."""

from __future__ import annotations

import email.utils
import time
from collections.abc import Mapping
from typing import Any, TypeVar
from urllib.parse import quote, urlencode

import msgspec
import urllib3
import urllib3.exceptions as u3

import tracer
from tracer import bounded_input
from tracer.client import failures
from tracer.client.address import Address
from tracer.client.answers import Entry, Function, Lock, Rates, Seen, Status
from tracer.client.credentials import Credentials, fingerprint, tls_context
from tracer.errors import RmapdError
from tracer.printable import shown

_ROOT = "/api/v1"
_MOST_BYTES = 64 << 20
_PIECE = 1 << 16
_BUSY_SECONDS = 1.0
"""How long to wait where the daemon is busy with other logins."""
_Kind = TypeVar("_Kind")


class Client:
    """Reads the API of one daemon over a connection that is kept; several threads may use it.

    timeout: of one request with its answer, in seconds. Every method raises RmapdError: Unreachable
    where no daemon answers, else for what cannot succeed later either (a wrong password, a
    certificate that is not trusted). Redirects are not followed, and proxies are not used.
    """

    def __init__(
        self, address: Address, credentials: Credentials | None = None, timeout: float = 5.0
    ) -> None:
        self.address, self.timeout = address, timeout
        self._credentials = credentials or Credentials()
        self._pool: urllib3.HTTPConnectionPool | None = None

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; the next request opens another one."""
        pool, self._pool = self._pool, None
        if pool:
            pool.close()

    def status(self) -> Seen:
        """Return the daemon on one screen."""
        body, date = self._get("status")
        exact = self._decoded(body)
        status = self._typed(exact, Status)
        age = date - status.taken.timestamp() if date is not None else 0.0
        return Seen(status, exact, max(0.0, age))

    def functions(self) -> list[Function]:
        """Return the windows of each function, the most time first."""
        return self._read("functions", list[Function])

    def locks(self) -> list[Lock]:
        """Return the waits and holds of each lock class."""
        return self._read("locks", list[Lock])

    def entries(self) -> list[Entry]:
        """Return the oldest outstanding migration entries."""
        return self._read("entries", list[Entry])

    def rates(self, since: float = -1.0) -> Rates:
        """Return the counts of the last ten minutes that are later than `since`."""
        return self._read("rates", Rates, {"since": f"{since:.3f}"} if since >= 0 else {})

    def violation(self, id: str) -> dict[str, Any] | None:
        """Return a violation with its evidence and exact names, or None if there is none."""
        try:
            found = self._decoded(self._get(f"violations/{quote(id, safe='')}")[0])
        except _NotFound:
            return None
        return dict(found)

    def protocols(self, function: str) -> list[dict[str, Any]]:
        """Return the protocols of a function as a report has them, with exact names."""
        return list(self._decoded(self._get("protocols", {"function": function})[0]))

    def hooks(self) -> dict[str, Any]:
        """Return the hooks as a report has them."""
        return dict(self._decoded(self._get("hooks")[0]))

    def _read(self, path: str, kind: type[_Kind], fields: Mapping[str, str] | None = None) -> _Kind:
        return self._typed(self._decoded(self._get(path, fields)[0]), kind)

    def _typed(self, exact: Any, kind: type[_Kind]) -> _Kind:
        try:
            return msgspec.convert(shown(exact), kind)
        except (msgspec.ValidationError, ValueError) as error:
            raise failures.of_content(error, self.address) from error

    def _decoded(self, body: bytes) -> Any:
        try:
            return bounded_input.json_value(body)
        except (ValueError, RecursionError) as error:
            raise failures.of_content(error, self.address) from error

    def _get(
        self, path: str, fields: Mapping[str, str] | None = None
    ) -> tuple[bytes, float | None]:
        """Return the body of a path under /api/v1, and the daemon's time in Unix seconds.

        Once more where a kept connection was closed meanwhile, and while others log in.
        """
        end = time.monotonic() + self.timeout
        query = f"?{urlencode(fields)}" if fields else ""
        target = f"{self.address.base}{_ROOT}/{path}{query}"
        kept = self._pool is not None
        while True:
            left = end - time.monotonic()
            try:
                status, body, date = self._exchange(target, max(0.01, left), end)
            except (u3.HTTPError, OSError) as error:
                self.close()
                if kept and isinstance(error, u3.ProtocolError):
                    kept = False
                    continue
                raise failures.of_exception(error, self.address, self.timeout) from error
            if status == 429 and left > 2 * _BUSY_SECONDS:
                time.sleep(_BUSY_SECONDS)
                continue
            if status == 200:
                return body, date
            self._refuse(status, body, path)

    def _refuse(self, status: int, body: bytes, path: str) -> None:
        """Raise the error for a response with another status than 200."""
        text = body[:4096].decode(errors="replace")
        try:
            text = str(msgspec.json.decode(body, type=dict[str, Any])["error"])
        except (msgspec.MsgspecError, KeyError):
            pass
        else:
            if status == 404 and path.startswith("violations/"):
                raise _NotFound(text)
        login = bool(self._credentials.authorization)
        raise failures.of_status(status, text, self.address, login=login)

    def _exchange(self, target: str, left: float, end: float) -> tuple[int, bytes, float | None]:
        """Send a request, and return status, body and date. left: seconds. end: monotonic."""
        headers = {"User-Agent": f"rmapd/{tracer.__version__}", "Accept": "application/json"}
        headers["Accept-Encoding"] = "gzip"
        if self._credentials.authorization:
            headers["Authorization"] = self._credentials.authorization
        response = self._open().request(
            "GET",
            target,
            headers=headers,
            timeout=urllib3.Timeout(total=left),
            retries=False,
            redirect=False,
            preload_content=False,
        )
        whole = False
        try:
            body = bytearray()
            while piece := response.read(_PIECE):
                body += piece
                if len(body) > _MOST_BYTES:
                    raise u3.HTTPError(f"the answer has more than {_MOST_BYTES >> 20} MiB")
                if time.monotonic() > end:
                    raise TimeoutError
            whole = True
        finally:
            if whole:
                response.release_conn()
            else:
                response.close()
        return response.status, bytes(body), _unix_seconds(response.headers.get("Date", ""))

    def _open(self) -> urllib3.HTTPConnectionPool:
        """Return the pool; files of certificates are read again each time that it is made."""
        if self._pool is None:
            self._pool = self._made()
        return self._pool

    def _made(self) -> urllib3.HTTPConnectionPool:
        at, known = self.address, self._credentials
        if at.scheme == "http":
            return urllib3.HTTPConnectionPool(at.host, at.port, maxsize=2)
        pinned = at.certificate if known.ca_file is None and not known.server_name else None
        return urllib3.HTTPSConnectionPool(
            at.host,
            at.port,
            maxsize=2,
            ssl_context=tls_context(known, pinned=pinned is not None),
            assert_fingerprint=fingerprint(pinned) if pinned else None,
            server_hostname=known.server_name or None,
        )


class _NotFound(RmapdError):
    """There is no violation with this id."""


def _unix_seconds(date: str) -> float | None:
    try:
        return email.utils.parsedate_to_datetime(date).timestamp()
    except (TypeError, ValueError):
        return None
