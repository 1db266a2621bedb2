"""The HTTP side: /metrics, /-/healthy, /-/ready and a plain landing page. Nothing here changes anything."""

from __future__ import annotations

import html
import threading
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, cast
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from cheroot import wsgi
from prometheus_client import CollectorRegistry, ProcessCollector, make_wsgi_app

from tracer.errors import RmapdError
from tracer.metrics import SnapshotCollector
from tracer.snapshot import Snapshot
from tracer.verdict import Verdict

_HEADERS = [
    ("X-Content-Type-Options", "nosniff"),
    ("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'"),
    ("Cache-Control", "no-store"),
]
_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:60rem;padding:0 1rem;color-scheme:light dark}"
    "td,th{text-align:left;padding:.2rem .8rem .2rem 0;vertical-align:top}td.n{text-align:right;font-variant-numeric:tabular-nums}"
)


def application(current: Callable[[], Snapshot | None]) -> WSGIApplication:
    """The WSGI application over whatever snapshot is current; until there is one only /-/healthy and /metrics answer with 200."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(SnapshotCollector(current))
    ProcessCollector(registry=registry)
    metrics = make_wsgi_app(registry)

    def answer(start: StartResponse, status: str, text: str, kind: str = "text/plain") -> list[bytes]:
        start(status, [("Content-Type", f"{kind}; charset=utf-8"), *_HEADERS])
        return [text.encode()]

    def app(environ: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            return answer(start, "405 Method Not Allowed", "GET or HEAD only\n")
        path, snapshot = environ.get("PATH_INFO", "/"), current()
        if path == "/-/healthy":
            return answer(start, "200 OK", "healthy\n")
        if path not in ("/", "/metrics", "/-/ready"):
            return answer(start, "404 Not Found", f"no {path} here: /, /metrics, /-/healthy, /-/ready\n")
        if path == "/metrics":
            return cast(Iterable[bytes], metrics(environ, start))
        if snapshot is None or (path == "/-/ready" and not snapshot.gate_open):
            return answer(start, "503 Service Unavailable", "the gate is not open\n")
        if path == "/-/ready":
            return answer(start, "200 OK", "ready\n")
        return answer(start, "200 OK", landing_page(snapshot), "text/html")

    return app


def landing_page(s: Snapshot) -> str:
    """Coverage, verdicts and violations as one HTML page without scripts."""
    rows = []
    for name, invariant in s.invariants.items():
        level, reason = s.coverage[name]
        counts = "".join(f'<td class="n">{s.checked(name, verdict):,}</td>' for verdict in Verdict)
        title, why = html.escape(invariant.title), html.escape(reason)
        rows.append(f"<tr><th>{name}</th><td>{title}</td><td>{level}</td>{counts}<td>{why}</td></tr>")
    found = "".join(
        f"<li><b>{html.escape(v.first.id)}</b> {v.first.verdict} ×{v.count}: {html.escape(v.first.summary)}</li>"
        for v in s.violations.values()
    )
    heads = "".join(f"<th>{verdict}</th>" for verdict in Verdict)
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'><title>rmapd</title>"
        f"<style>{_STYLE}</style><h1>rmapd on {html.escape(s.kernel)}</h1>"
        f"<p>Gate {'open' if s.gate_open else 'closed'}, fidelity {s.fidelity}, {s.running_seconds:.0f} s, "
        f"{s.outstanding} migration entries outstanding. <a href=/metrics>/metrics</a></p>"
        f"<h2>Violations and suspects</h2>{f'<ul>{found}</ul>' if found else '<p>None.</p>'}"
        f"<h2>Invariants</h2><table><tr><th>Id<th>Invariant<th>Coverage{heads}<th>Why not full</tr>{''.join(rows)}</table></html>"
    )


class Server:
    """A small threaded HTTP server; bound on construction so that a busy port is an error before anything is attached."""

    def __init__(self, address: tuple[str, int], app: WSGIApplication) -> None:
        handler: Any = app
        self._server = wsgi.Server(address, handler, numthreads=4, max=16, timeout=5, shutdown_timeout=1, request_queue_size=16)
        self._server.max_request_header_size = 16 * 1024
        self._server.max_request_body_size = 1024
        try:
            self._server.prepare()
        except OSError as error:
            where = f"{address[0]}:{address[1]}"
            hint = "--listen with another port, or stop what uses it"
            raise RmapdError(f"cannot listen on {where}", why=str(error.args[-1]), hint=hint) from error
        self.port = int(self._server.bind_addr[1])
        self._thread = threading.Thread(target=self._server.serve, name="rmapd-http", daemon=True)

    def __enter__(self) -> Server:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._server.stop()
        self._thread.join(timeout=5)
