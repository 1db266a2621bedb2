"""The pages for people. What comes from the kernel (names of tasks, of files) is text that anybody may have chosen: it is escaped."""

from __future__ import annotations

import datetime
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
"""What a step of a trail may leave out."""

LOSSES = {
    "evidence": "stack and task of something new: the event ring was full (maps.ring_pages)",
    "protocols": "windows not counted, or whose end was missed (maps.protocol_rows)",
    "unreadable": "windows whose protocol rmapd could not read: a defect of rmapd",
    "ledger": "migration entries or migrations not booked (maps.ledger_rows, migration_rows)",
    "locks": "mmap_locks not booked: no memory for a task, or five held at once",
    "mms": "dying address spaces not noted (maps.mm_rows)",
    "missed_runs": "runs of a probe that the kernel left out, because it was running already on that CPU",
}
"""What each of Snapshot.lost is a loss of, and which key of the configuration bounds it."""


class Pages:
    """Renders the templates of this package."""

    def __init__(self, search: Search, clock: Callable[[], float] = time.time) -> None:
        self._search, self._clock, self._host = search, clock, socket.gethostname()
        self._templates = jinja2.Environment(
            loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            auto_reload=False,
            finalize=_shown,
        )
        self._templates.filters |= {
            "number": number,
            "share": share,
            "span": span,
            "rate": rate,
            "moment": moment,
        }
        self._templates.globals |= {"Verdict": Verdict, "version": tracer.__version__}
        for name in self._templates.list_templates(
            ["html"]
        ):  # now: the user that the daemon becomes may not be able to read them
            self._templates.get_template(name)

    def __call__(
        self, ask: Request, s: Snapshot | None, points: Sequence[HistoryPoint]
    ) -> Response:
        if s is None:
            return self._page(
                503,
                "problem.html",
                None,
                title="Not yet",
                text="The gate is not open: rmapd is compiling or attaching.",
            )
        room, _, name = ask.path.strip("/").partition("/")
        if ask.path == "/":
            stands = standing(s, points, self._age(s))
            return self._page(
                200, "overview.html", s, stands=stands, **self._overview(ask, s, points)
            )
        if ask.path == "/protocols":
            return self._page(200, "protocols.html", s, **self._protocols(ask, s))
        if ask.path == "/hooks":
            return self._page(200, "hooks.html", s, hooks=_hooks(s))
        if room == "violations" and name in s.violations:
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
        if room == "invariants" and name in s.invariants:
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
            title="Nothing here",
            text="There is no page at this address, or not any more.",
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
            "lost": [(book, count, LOSSES.get(book, "")) for book, count in s.lost.items()],
            "costliest": hooks[:_COSTLIEST],
            "probes": _share(points, lambda p: p.probe_seconds),
            "daemon": _share(points, lambda p: p.user_seconds),
            "hooks_on": sum(hook.on for hook in s.hooks),
        }

    def _protocols(self, ask: Request, s: Snapshot) -> dict[str, Any]:
        query = Query.of(ask.fields)
        page = self._search.page(s, query)
        asked = {"q": " ".join(query.words), "function": query.function, "ruled": query.ruled}

        def at(number: int) -> str:
            return "/protocols?" + urlencode(
                {name: value for name, value in asked.items() if value} | {"page": number}
            )

        functions = sorted({one.protocol.window for one in s.protocols})
        return {
            "page": page,
            "asked": asked,
            "functions": functions,
            "ruled": RULED,
            "at": at,
            "total": len(s.protocols),
        }


def _shown(value: Any) -> Any:
    """What a template says of a name. Markup is ours, and its names are escaped already."""
    return printable(value, keep="\n\t") if type(value) is str else value


def _worst_first(s: Snapshot) -> list[Any]:
    return sorted(
        s.violations.values(), key=lambda v: (v.first.verdict is not Verdict.VIOLATED, -v.last_seen)
    )


def _row(s: Snapshot, name: str, points: Sequence[HistoryPoint]) -> dict[str, Any]:
    """An invariant: coverage, counts, and its checks per second over the last minute."""
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
    """Every hook with what it cost."""
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
    """A trail's steps with the time before the last one."""
    last = trail[-1].get("time_ns", 0) if trail else 0
    return [_STEP | step | {"before": (last - step.get("time_ns", 0)) / 1e9} for step in trail]


def number(value: float) -> str:
    """Thousands apart."""
    return f"{value:,.0f}"


def share(value: float | None) -> str:
    """A part of one CPU."""
    return "–" if value is None else f"{value:.2%}" if value < 0.1 else f"{value:.0%}"


def rate(value: float | None) -> str:
    """Per second, with as many digits as mean something."""
    if value is None:
        return "–"
    return (
        f"{value:,.0f}"
        if value >= 10 or value == 0
        else f"{value:.1f}"
        if value >= 0.1
        else f"{value:.2g}"
    )


def span(seconds: float | None) -> str:
    """A duration in the unit that suits it."""
    if seconds is None:
        return "–"
    for unit, long in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * long:
            return f"{seconds / long:.1f} {unit}"
    for unit, size in (("s", 1), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e9:.0f} ns"


def moment(iso: str) -> str:
    """An ISO time as people read it, to the second, in UTC."""
    return datetime.datetime.fromisoformat(iso).strftime("%Y-%m-%d %H:%M:%S UTC")
