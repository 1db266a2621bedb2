"""The HTML pages. Names of tasks and files may be chosen by any user, so they are escaped."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import jinja2
from markupsafe import Markup

import tracer
from tracer.ids import canonical
from tracer.invariants.verdict import Verdict
from tracer.package_data import folder
from tracer.printable import printable
from tracer.protocol.legend import legend
from tracer.report import protocol_html
from tracer.report.similarity import legal_counterpart_now
from tracer.results import json_form
from tracer.results.coverage_reasons import coverage_reasons
from tracer.results.history import RATE_SECONDS, HistoryPoint, per_second
from tracer.results.snapshot import Snapshot
from tracer.results.standing import STALE_SECONDS, Standing
from tracer.results.standing_facts import standing
from tracer.time_text import precise, utc
from tracer.web import chart, hook_rows
from tracer.web.documents import Documents
from tracer.web.http_message import HTML, Request, Response
from tracer.web.search import RULED, Query, Search

_REFRESH = ("5", "30")
_COSTLIEST = 8

_STEP: dict[str, Any] = {
    "function": "",
    "task": {},
    "vma": {},
    "protocol": "",
    "stack": [],
    "marked": False,
    "why": "",
}
"""Defaults of the members that a step of a trail may lack."""

LOSSES = {
    "evidence": "new findings without their stack and task: the event ring was full"
    " (maps.ring_pages)",
    "protocols": "windows that were not counted, or whose end was missed (maps.protocol_rows)",
    "unreadable": "windows whose protocol rmapd could not decode: a defect of rmapd",
    "ledger": "migration entries or migrations that were not recorded (maps.ledger_rows,"
    " maps.migration_rows)",
    "locks": "mmap_locks that were not recorded: no memory for a task, or five held at once",
    "mms": "ends of address spaces that were not recorded (maps.mm_rows)",
    "waits": "waits for an rwsem that were not recorded: the map was busy",
    "missed_runs": "runs of a BPF program that the kernel left out: it already ran on that CPU",
}
"""What each key of Snapshot.lost means, and the key of the configuration that sets its limit."""


class Pages:
    """Renders the templates of this package. clock: Unix seconds."""

    def __init__(self, search: Search, clock: Callable[[], float] = time.time) -> None:
        self._search, self._clock, self._host = search, clock, socket.gethostname()
        self._documents = Documents(folder("docs"))
        self._templates = jinja2.Environment(
            loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            auto_reload=False,
            finalize=_printable,
        )
        self._templates.filters |= {
            "number": number,
            "share": share,
            "duration": precise,
            "rate": rate,
            "utc": utc,
            "protocol": _protocol,
        }
        self._templates.globals |= {"version": tracer.__version__, "notation": legend()}
        # Load all now: the user that the daemon becomes may not be able to read them.
        for name in self._templates.list_templates(["html"]):
            self._templates.get_template(name)

    def __call__(
        self, ask: Request, s: Snapshot | None, points: Sequence[HistoryPoint]
    ) -> Response:
        """Return the page of the request's path; points: counts of the last ten minutes."""
        if document := self._documents.get(ask.path):
            stands = standing(s, points, self._age(s)) if s else None
            return self._page(200, "document.html", s, stands, document=document)
        if s is None:
            return self._page(503, "starting.html", None, refresh="5")
        stands = standing(s, points, self._age(s))
        found = self._of_path(ask, s, points)
        if found is None:
            return self._page(404, "not_found.html", s, stands)
        template, values = found
        return self._page(200, template, s, stands, **values)

    def _of_path(
        self, ask: Request, s: Snapshot, points: Sequence[HistoryPoint]
    ) -> tuple[str, dict[str, Any]] | None:
        """Return the template of a path and its values, or None where there is no such page."""
        folder, _, name = ask.path.strip("/").partition("/")
        name = canonical(name)
        match folder, name:
            case "", "" if ask.path == "/":
                return "overview.html", self._overview(ask, s, points)
            case "protocols", "":
                return "protocols.html", self._protocols(ask, s)
            case "hooks", "":
                return "hooks.html", hook_rows.page(s)
            case "violations", _ if name in s.violations:
                return "violation.html", _violation(s, name)
            case "invariants", _ if name in s.invariants:
                return "invariant.html", _invariant(s, name, points)
        return None

    def _age(self, s: Snapshot) -> float:
        return self._clock() - s.taken_seconds

    def _page(
        self,
        status: int,
        template: str,
        s: Snapshot | None,
        stands: Standing | None = None,
        **values: Any,
    ) -> Response:
        age = self._age(s) if s else 0.0
        common = {
            "s": s,
            "host": s.host if s else self._host,
            "stands": stands,
            "stale": age if age > STALE_SECONDS else 0.0,
            "refresh": "",
        }
        text = self._templates.get_template(template).render(common | values)
        return Response(status, text.encode(), HTML, {"Retry-After": "2"} if status == 503 else {})

    def _overview(
        self, ask: Request, s: Snapshot, points: Sequence[HistoryPoint]
    ) -> dict[str, Any]:
        refresh = ask.fields.get("refresh", "")
        reasons = coverage_reasons(s)
        return {
            "refresh": refresh if refresh in _REFRESH else "",
            "choices": _REFRESH,
            "rows": [_row(s, name, points, reasons[name]) for name in s.invariants],
            "violations": [json_form.violation_json(v) for v in _worst_first(s)],
            "violated": s.total(Verdict.VIOLATED),
            "suspect": s.total(Verdict.SUSPECT),
            "unverifiable": s.total(Verdict.UNVERIFIABLE),
            "checks": sum(s.checks.values()),
            "covered": {
                level: sum(
                    found is not None and found.value == level for found, _ in s.coverage.values()
                )
                for level in ("full", "partial", "none")
            },
            "charts": [chart.draw(one, points, s.running_seconds) for one in chart.CHARTS],
            "lost": [(kind, count, LOSSES.get(kind, "")) for kind, count in s.lost.items()],
            "costliest": hook_rows.costliest(s, _COSTLIEST),
            "probes": _share(points, lambda p: p.probe_seconds),
            "daemon": _share(points, lambda p: p.user_seconds),
            "hooks_on": sum(hook.on for hook in s.hooks),
        }

    def _protocols(self, ask: Request, s: Snapshot) -> dict[str, Any]:
        query = Query.of(ask.fields)
        page = self._search.page(s, query)
        form = {"q": " ".join(query.words), "function": query.function, "ruled": query.ruled}

        def page_link(number: int) -> str:
            return "/protocols?" + urlencode(
                {name: value for name, value in form.items() if value} | {"page": number}
            )

        functions = sorted({one.protocol.window for one in s.protocols})
        return {
            "page": page,
            "form": form,
            "functions": functions,
            "ruled": RULED,
            "page_link": page_link,
            "total": len(s.protocols),
            "windows": _records_windows(s),
        }


def _printable(value: Any) -> Any:
    """Make a text printable, but not Markup: its names have been escaped before."""
    return printable(value, keep="\n\t") if type(value) is str else value


def _protocol(line: str) -> Markup:
    """Mark up the steps of a protocol by their kind."""
    return protocol_html.one_line(printable(line))


def _worst_first(s: Snapshot) -> list[Any]:
    return sorted(
        s.violations.values(), key=lambda v: (v.first.verdict is not Verdict.VIOLATED, -v.last_seen)
    )


def _row(s: Snapshot, name: str, points: Sequence[HistoryPoint], reason: str) -> dict[str, Any]:
    """Return an invariant's coverage, counts, and checks per second over the last minute."""
    return {
        "id": name,
        "title": s.invariants[name].title,
        "coverage": s.coverage[name][0].value,
        "reason": reason,
        "counts": {verdict.value: s.checked(name, verdict) for verdict in Verdict},
        "rate": per_second(points, RATE_SECONDS, lambda p: p.checks.get(name, 0)),
    }


def _records_windows(s: Snapshot) -> bool:
    """Return whether a hook is attached that records windows."""
    return any(hook.on and hook.hook.window for hook in s.hooks)


def _violation(s: Snapshot, name: str) -> dict[str, Any]:
    """Return the values of a violation's page."""
    violation = s.violations[name]
    found = json_form.violation_json(violation)
    both = legal_counterpart_now(violation, s)
    seen, legal = protocol_html.compared(*both) if both else ("", "")
    return {
        "v": found,
        "evidence": {name: one for name, one in found["evidence"].items() if name != "trail_note"},
        "steps": _steps(found["trail"]),
        "invariant": s.invariants[found["invariant"]],
        "seen": seen or _protocol(found["protocol"]),
        "legal": legal,
        "legal_windows": both[1].count if both else 0,
        "windows": _records_windows(s),
    }


def _invariant(s: Snapshot, name: str, points: Sequence[HistoryPoint]) -> dict[str, Any]:
    """Return the values of an invariant's page."""
    mine = [v for v in s.violations.values() if v.first.invariant == name]
    return {
        "i": _row(s, name, points, coverage_reasons(s)[name]),
        "full": s.invariants[name],
        "violations": [json_form.violation_json(v) for v in mine],
    }


def _share(
    points: Sequence[HistoryPoint], counted: Callable[[HistoryPoint], float]
) -> float | None:
    return per_second(points, RATE_SECONDS, counted)


def _steps(trail: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the steps of a trail with the seconds before the last one."""
    last = trail[-1].get("time_ns", 0) if trail else 0
    return [_STEP | step | {"before": (last - step.get("time_ns", 0)) / 1e9} for step in trail]


def number(value: float) -> str:
    """Format a number with thousands separators."""
    return f"{value:,.0f}"


def share(value: float | None) -> str:
    """Format a share of one CPU as percent; None is a dash."""
    return "–" if value is None else f"{value:.2%}" if value < 0.1 else f"{value:.0%}"


def rate(value: float | None) -> str:
    """Format a rate with at most two digits below 10; None is a dash."""
    if value is None:
        return "–"
    return (
        f"{value:,.0f}"
        if value >= 10 or value == 0
        else f"{value:.1f}"
        if value >= 0.1
        else f"{value:.2g}"
    )
