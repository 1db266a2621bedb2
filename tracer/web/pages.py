"""The HTML pages. Names of tasks and files may be chosen by any user, so they are escaped."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import jinja2

import tracer
from tracer.invariants.verdict import Verdict
from tracer.printable import printable
from tracer.results import json_form
from tracer.results.history import HistoryPoint
from tracer.results.snapshot import Snapshot
from tracer.results.standing import STALE_SECONDS
from tracer.results.standing_facts import standing
from tracer.time_text import precise, utc
from tracer.web import chart
from tracer.web.http_message import HTML, Request, Response
from tracer.web.search import RULED, Query, Search

RATE_SECONDS = 60.0
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
    "evidence": "stack and task of a new finding: the event ring was full (maps.ring_pages)",
    "protocols": "windows not counted, or whose end was missed (maps.protocol_rows)",
    "unreadable": "windows whose protocol rmapd could not decode: a defect of rmapd",
    "ledger": "migration entries or migrations not recorded (maps.ledger_rows, migration_rows)",
    "locks": "mmap_locks not recorded: no memory for a task, or five held at once",
    "mms": "ends of address spaces not recorded (maps.mm_rows)",
    "missed_runs": "runs of a BPF program that the kernel skipped: it already ran on that CPU",
}
"""What each key of Snapshot.lost means, and the key of the configuration that sets its limit."""


class Pages:
    """Renders the templates of this package. clock: Unix seconds."""

    def __init__(self, search: Search, clock: Callable[[], float] = time.time) -> None:
        self._search, self._clock, self._host = search, clock, socket.gethostname()
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
        }
        self._templates.globals |= {"Verdict": Verdict, "version": tracer.__version__}
        # Load all now: the user that the daemon becomes may not be able to read them.
        for name in self._templates.list_templates(["html"]):
            self._templates.get_template(name)

    def __call__(
        self, ask: Request, s: Snapshot | None, points: Sequence[HistoryPoint]
    ) -> Response:
        """Return the page of the request's path; points: counts of the last ten minutes."""
        if s is None:
            return self._page(
                503,
                "problem.html",
                None,
                title="Starting",
                text="The gate is not open yet: rmapd is compiling or attaching its probes.",
            )
        folder, _, name = ask.path.strip("/").partition("/")
        if ask.path == "/":
            stands = standing(s, points, self._age(s))
            return self._page(
                200, "overview.html", s, stands=stands, **self._overview(ask, s, points)
            )
        if ask.path == "/protocols":
            return self._page(200, "protocols.html", s, **self._protocols(ask, s))
        if ask.path == "/hooks":
            return self._page(200, "hooks.html", s, hooks=_hooks(s))
        if folder == "violations" and name in s.violations:
            violation = s.violations[name]
            found = json_form.violation_json(violation)
            return self._page(
                200,
                "violation.html",
                s,
                v=found,
                steps=_steps(found["trail"]),
                invariant=s.invariants[found["invariant"]],
            )
        if folder == "invariants" and name in s.invariants:
            mine = [
                json_form.violation_json(v)
                for v in s.violations.values()
                if v.first.invariant == name
            ]
            return self._page(
                200,
                "invariant.html",
                s,
                i=_row(s, name, points),
                full=s.invariants[name],
                violations=mine,
            )
        return self._page(
            404,
            "problem.html",
            s,
            title="Page not found",
            text="There is no page at this address.",
        )

    def _age(self, s: Snapshot) -> float:
        return self._clock() - s.taken_seconds

    def _page(self, status: int, template: str, s: Snapshot | None, **values: Any) -> Response:
        age = self._age(s) if s else 0.0
        common = {
            "s": s,
            "host": self._host,
            "stale": age if age > STALE_SECONDS else 0.0,
            "refresh": "",
        }
        text = self._templates.get_template(template).render(common | values)
        return Response(status, text.encode(), HTML, {"Retry-After": "2"} if status == 503 else {})

    def _overview(
        self, ask: Request, s: Snapshot, points: Sequence[HistoryPoint]
    ) -> dict[str, Any]:
        refresh = ask.fields.get("refresh", "")
        hooks = sorted(
            (hook for hook in _hooks(s) if hook["seconds"]), key=lambda hook: -hook["seconds"]
        )
        return {
            "refresh": refresh if refresh in _REFRESH else "",
            "choices": _REFRESH,
            "rows": [_row(s, name, points) for name in s.invariants],
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
            "costliest": hooks[:_COSTLIEST],
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
        }


def _printable(value: Any) -> Any:
    """Make a text printable, but not Markup: its names have been escaped before."""
    return printable(value, keep="\n\t") if type(value) is str else value


def _worst_first(s: Snapshot) -> list[Any]:
    return sorted(
        s.violations.values(), key=lambda v: (v.first.verdict is not Verdict.VIOLATED, -v.last_seen)
    )


def _row(s: Snapshot, name: str, points: Sequence[HistoryPoint]) -> dict[str, Any]:
    """Return an invariant's coverage, counts, and checks per second over the last minute."""
    level, reason = s.coverage[name]
    return {
        "id": name,
        "title": s.invariants[name].title,
        "coverage": level.value,
        "reason": reason,
        "counts": {verdict.value: s.checked(name, verdict) for verdict in Verdict},
        "rate": chart.over(points, RATE_SECONDS, lambda p: p.checks.get(name, 0)),
    }


def _hooks(s: Snapshot) -> list[dict[str, Any]]:
    """Return all hooks with their cost."""
    rows = []
    for hook in s.hooks:
        cost = s.statistics.get(hook.hook.name)
        runs, seconds, missed = (cost.runs, cost.seconds, cost.missed) if cost else (0, 0.0, 0)
        rows.append(
            {
                "name": hook.hook.name,
                "probe_object": hook.probe_object,
                "state": hook.state.value,
                "how": hook.how,
                "reason": hook.reason,
                "runs": runs,
                "seconds": seconds,
                "each": seconds / runs if runs else None,
                "missed": missed,
            }
        )
    return rows


def _share(
    points: Sequence[HistoryPoint], counted: Callable[[HistoryPoint], float]
) -> float | None:
    return chart.over(points, RATE_SECONDS, counted)


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
