"""What is at which path. Answers are kept for as long as their snapshot is the current one: asking often costs little."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.exposition import choose_encoder

from tracer.outputs.prometheus import SnapshotCollector
from tracer.results.history import HistoryPoint
from tracer.results.snapshot import Snapshot
from tracer.results.standing import STALE_SECONDS, STALLED_SECONDS
from tracer.web.api import Api, problem
from tracer.web.http_message import Request, Response
from tracer.web.pages import Pages
from tracer.web.search import Search

_STATIC = {
    "/static/style.css": ("style.css", "text/css; charset=utf-8"),
    "/static/icon.svg": ("icon.svg", "image/svg+xml"),
}
_FOLDER = Path(__file__).parent / "static"
_FRESH = {"Cache-Control": "max-age=3600"}
_MOST_KEPT = 64
_MOST_KEPT_BYTES = 4 << 20


class Source(Protocol):
    """Where the snapshot and the last minutes are read."""

    @property
    def points(self) -> tuple[HistoryPoint, ...]: ...
    def __call__(self) -> Snapshot | None: ...


class Application:
    """Answers requests from the current snapshot. Called from one thread."""

    def __init__(self, current: Source, clock: Callable[[], float] = time.time) -> None:
        self._current, self._clock = current, clock
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(SnapshotCollector(current, lambda: current.points, clock))
        ProcessCollector(registry=self._registry)
        search = Search()
        self._pages, self._api = Pages(search, clock), Api(search)
        self._static = {
            path: Response(200, (_FOLDER / name).read_bytes(), kind, _FRESH)
            for path, (name, kind) in _STATIC.items()
        }
        self._kept: dict[tuple[str, ...], Response] = {}
        self._kept_of: Snapshot | None = None

    def __call__(self, ask: Request) -> Response:
        if ask.method not in ("GET", "HEAD"):
            return Response.say(405, "GET or HEAD only", Allow="GET, HEAD")
        if ask.path in self._static:
            return self._static[ask.path]
        s = self._current()
        if ask.path == "/-/healthy":
            return self._healthy(s)
        if ask.path == "/-/ready":
            return (
                Response.say(200, "ready")
                if s and s.gate_open
                else Response.say(503, "the gate is not open")
            )
        return self._once(ask, s, lambda: self._make(ask, s))

    def _age(self, s: Snapshot | None) -> float:
        """Seconds since the snapshot was taken: a new one was just asked for, so an old one means a judging loop that is busy or hangs."""
        return self._clock() - s.taken_seconds if s else 0.0

    def _healthy(self, s: Snapshot | None) -> Response:
        """Not healthy where the judging loop hangs: all answers are from before that."""
        age = self._age(s)
        if s is None or not s.gate_open or age <= STALE_SECONDS:
            return Response.say(200, "healthy")
        said = f"the checker has not looked for {age:,.0f} s"
        return (
            Response.say(200, f"healthy, but {said}")
            if age <= STALLED_SECONDS
            else Response.say(503, f"not healthy: {said}")
        )

    def _once(self, ask: Request, s: Snapshot | None, make: Callable[[], Response]) -> Response:
        """From what is kept, or made and kept."""
        if s is not self._kept_of:
            self._kept, self._kept_of = {}, s
        packed = "gzip" in ask.headers.get("accept-encoding", "")
        accept = ask.headers.get("accept", "") if ask.path == "/metrics" else ""
        age = self._age(s)
        stale = (
            f"{age:.0f}" if age > STALE_SECONDS else ""
        )  # an answer that says how old it is, is a new one every second
        key = (ask.path, ask.query, accept, "gzip" * packed, stale)
        if key not in self._kept:
            answer = make().packed() if packed else make()
            answer = replace(answer, headers={**answer.headers, "Vary": "Accept-Encoding"})
            self._keep(key, answer)
            return answer
        return self._kept[key]

    def _keep(self, key: tuple[str, ...], answer: Response) -> None:
        """For as long as there is room; the oldest gives way."""
        self._kept[key] = answer
        while (
            len(self._kept) > _MOST_KEPT
            or sum(len(one.body) for one in self._kept.values()) > _MOST_KEPT_BYTES
        ):
            del self._kept[next(iter(self._kept))]

    def _make(self, ask: Request, s: Snapshot | None) -> Response:
        if ask.path == "/metrics":
            encode, kind = choose_encoder(ask.headers.get("accept", ""))
            return Response(200, encode(self._registry), kind)
        if ask.path.startswith("/api"):
            return (
                self._api(ask, s, self._current.points, self._age(s))
                if s
                else problem(503, "the gate is not open")
            )
        return self._pages(ask, s, self._current.points)
