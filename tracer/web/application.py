"""The paths of the HTTP server. Responses are cached as long as their snapshot is current."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.exposition import choose_encoder

from tracer import icon
from tracer.outputs.prometheus import SnapshotCollector
from tracer.results.history import HistoryPoint
from tracer.results.snapshot import Snapshot
from tracer.results.standing import STALE_SECONDS, STALLED_SECONDS
from tracer.web.api import Api, not_ready
from tracer.web.http_message import CSS, Request, Response
from tracer.web.pages import Pages
from tracer.web.search import Search

_STYLE = Path(__file__).parent / "static" / "style.css"
_SVG = "image/svg+xml"
_FRESH = {"Cache-Control": "max-age=3600"}
_MOST_CACHED = 64
_VERSIONS = ("", "0.0.1", "0.0.4", "1.0.0")
"""Of the formats that a scraper may ask for. Others would come back in our Content-Type."""
_MOST_CACHED_BYTES = 4 << 20


class Source(Protocol):
    """Provides the current snapshot and the counts of the last ten minutes."""

    @property
    def points(self) -> tuple[HistoryPoint, ...]:
        """The counts, the latest last."""
        ...

    def __call__(self) -> Snapshot | None:
        """Return the current snapshot, or None before the gate opens."""
        ...


class Application:
    """Answers requests from the current snapshot; called from one thread. clock: Unix seconds."""

    def __init__(self, current: Source, clock: Callable[[], float] = time.time) -> None:
        self._current, self._clock = current, clock
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(SnapshotCollector(current, lambda: current.points, clock))
        ProcessCollector(registry=self._registry)
        search = Search()
        self._pages, self._api = Pages(search, clock), Api(search)
        self._static = {
            "/static/style.css": Response(200, _STYLE.read_bytes(), CSS, _FRESH),
            "/favicon.ico": Response(200, icon.svg().encode(), _SVG, _FRESH),
        } | {
            f"/static/icon{f'-{colour}' if colour else ''}.svg": Response(
                200, icon.svg(colour).encode(), _SVG, _FRESH
            )
            for colour in icon.COLOURS
        }
        self._cache: dict[tuple[str, ...], Response] = {}
        self._cached_snapshot: Snapshot | None = None

    def __call__(self, ask: Request) -> Response:
        """Return the response to a request of any method and path."""
        if ask.method not in ("GET", "HEAD"):
            return Response.plain(405, "GET or HEAD only", Allow="GET, HEAD")
        if ask.path in self._static:
            return self._static[ask.path]
        s = self._current()
        if ask.path == "/-/healthy":
            return self._healthy(s)
        if ask.path == "/-/ready":
            return (
                Response.plain(200, "ready")
                if s and s.gate_open
                else Response.plain(503, "the gate is not open")
            )
        return self._from_cache(ask, s, lambda: self._make(ask, s))

    def _age(self, s: Snapshot | None) -> float:
        """Return the seconds since the snapshot was taken.

        Each request asks for a new one: an old one means that the checking loop is busy or hangs.
        """
        return self._clock() - s.taken_seconds if s else 0.0

    def _healthy(self, s: Snapshot | None) -> Response:
        """Answer whether the checking loop runs: if it hangs, all responses are outdated."""
        age = self._age(s)
        if s is None or not s.gate_open or age <= STALE_SECONDS:
            return Response.plain(200, "healthy")
        reason = f"the last update was {age:,.0f} s ago"
        return (
            Response.plain(200, f"healthy, but {reason}")
            if age <= STALLED_SECONDS
            else Response.plain(503, f"not healthy: {reason}, the checker hangs")
        )

    @property
    def cached(self) -> tuple[Response, ...]:
        """The cached responses, the oldest first."""
        return tuple(self._cache.values())

    def _from_cache(
        self, ask: Request, s: Snapshot | None, make: Callable[[], Response]
    ) -> Response:
        """Return the cached response, or make it and cache it."""
        if s is not self._cached_snapshot:
            self._cache, self._cached_snapshot = {}, s
        packed = "gzip" in ask.headers.get("accept-encoding", "")
        accept = ask.headers.get("accept", "") if ask.path == "/metrics" else ""
        age = self._age(s)
        # A stale response contains its age in seconds.
        stale = f"{age:.0f}" if age > STALE_SECONDS else ""
        key = (ask.path, ask.query, accept, "gzip" * packed, stale)
        if key not in self._cache:
            answer = make().packed() if packed else make()
            answer = replace(answer, headers={**answer.headers, "Vary": "Accept-Encoding"})
            self._keep(key, answer)
            return answer
        return self._cache[key]

    def _keep(self, key: tuple[str, ...], answer: Response) -> None:
        """Cache a response, and evict the oldest ones beyond the limits."""
        self._cache[key] = answer
        while (
            len(self._cache) > _MOST_CACHED
            or sum(len(one.body) for one in self._cache.values()) > _MOST_CACHED_BYTES
        ):
            del self._cache[next(iter(self._cache))]

    def _make(self, ask: Request, s: Snapshot | None) -> Response:
        if ask.path == "/metrics":
            encode, kind = choose_encoder(_of_known_versions(ask.headers.get("accept", "")))
            return Response(200, encode(self._registry), kind)
        if ask.path.startswith("/api"):
            return (
                self._api(ask, s, self._current.points, self._age(s)) if s else not_ready(ask.path)
            )
        return self._pages(ask, s, self._current.points)


def _of_known_versions(accept: str) -> str:
    """Leave out of an Accept header the formats whose version is not one of _VERSIONS."""
    return ",".join(one for one in accept.split(",") if _version(one) in _VERSIONS)


def _version(media_range: str) -> str:
    """Return the parameter `version` of a media range, or an empty text."""
    parameters = (part.partition("=") for part in media_range.split(";")[1:])
    return next((value.strip() for name, _, value in parameters if name.strip() == "version"), "")
