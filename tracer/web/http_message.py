"""A request and its answer, and the headers of every answer."""

from __future__ import annotations

import gzip
import http
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from urllib.parse import parse_qsl

TEXT = "text/plain; charset=utf-8"
HTML = "text/html; charset=utf-8"
JSON = "application/json"
_MOST_FIELDS = 20
_WORTH_PACKING = 1024

SECURE: dict[str, str] = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "deny",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Cache-Control": "no-store",
}
"""In every answer; a web configuration may set some of them otherwise. No script runs, nothing is loaded from elsewhere, nobody frames us.
Strict-Transport-Security is left to the operator: it binds every other port of the same host name too."""


@dataclass(frozen=True)
class Request:
    """A request without a body. `headers` by lower-case name."""

    method: str
    path: str
    query: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def fields(self) -> Mapping[str, str]:
        """What a form sent; of a name that comes twice the last."""
        try:
            return dict(parse_qsl(self.query, max_num_fields=_MOST_FIELDS, errors="replace"))
        except ValueError:
            return {}


@dataclass(frozen=True)
class Response:
    """What goes back."""

    status: int
    body: bytes
    kind: str = TEXT
    headers: dict[str, str] = field(default_factory=dict)

    @classmethod
    def say(cls, status: int, text: str, **headers: str) -> Response:
        """A line of text."""
        return cls(
            status,
            f"{text}\n".encode(),
            headers={name.replace("_", "-"): value for name, value in headers.items()},
        )

    @property
    def reason(self) -> str:
        return http.HTTPStatus(self.status).phrase

    def packed(self) -> Response:
        """Compressed, where that is worth it."""
        if len(self.body) < _WORTH_PACKING:
            return self
        return Response(
            self.status,
            gzip.compress(self.body, 3, mtime=0),
            self.kind,
            {**self.headers, "Content-Encoding": "gzip"},
        )


Answering = Callable[[Request], Response]
