"""Requests, responses, and the headers of every response."""

from __future__ import annotations

import gzip
import http
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from urllib.parse import parse_qsl

TEXT = "text/plain; charset=utf-8"
CSS = "text/css; charset=utf-8"
HTML = "text/html; charset=utf-8"
JSON = "application/json"
_MOST_FIELDS = 20
_WORTH_PACKING = 1024

SECURE: dict[str, str] = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'; "
        "base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "deny",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Cache-Control": "no-store",
}
"""Headers of every response; a web configuration may change some of them.

They forbid scripts, resources of other hosts, and frames. Strict-Transport-Security is left to the
operator, since it applies to all ports of a host name.
"""


@dataclass(frozen=True)
class Request:
    """A request without a body; the names of headers are in lower case."""

    method: str
    path: str
    query: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def fields(self) -> Mapping[str, str]:
        """The fields of the query by name; the last one of each name."""
        try:
            return dict(parse_qsl(self.query, max_num_fields=_MOST_FIELDS, errors="replace"))
        except ValueError:
            return {}


@dataclass(frozen=True)
class Response:
    """A response; kind: the Content-Type."""

    status: int
    body: bytes
    kind: str = TEXT
    headers: dict[str, str] = field(default_factory=dict)

    @classmethod
    def plain(cls, status: int, text: str, **headers: str) -> Response:
        """Return a response with a line of text; an underscore in a header's name is a hyphen."""
        return cls(
            status,
            f"{text}\n".encode(),
            headers={name.replace("_", "-"): value for name, value in headers.items()},
        )

    @property
    def reason(self) -> str:
        """The reason phrase of the status."""
        return http.HTTPStatus(self.status).phrase

    def packed(self) -> Response:
        """Return the response compressed by gzip, if it has 1 KiB or more."""
        if len(self.body) < _WORTH_PACKING:
            return self
        return Response(
            self.status,
            gzip.compress(self.body, 3, mtime=0),
            self.kind,
            {**self.headers, "Content-Encoding": "gzip"},
        )


Answering = Callable[[Request], Response]
