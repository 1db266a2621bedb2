"""JSON under /api/v1/: a report, whole and in parts, the status, and what is hot now.

An error has four members, as errors of the commands have: `error` (what is wrong), `where`, `why`
and `hint` (what to try).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tracer.ids import canonical
from tracer.printable import json_text
from tracer.results import json_form, live_json
from tracer.results.history import HistoryPoint
from tracer.results.snapshot import Snapshot
from tracer.results.standing import Standing
from tracer.results.standing_facts import standing
from tracer.web.http_message import JSON, Request, Response
from tracer.web.parameters import BadQuery, Parameters
from tracer.web.search import Query, Search

ROOT = "/api/v1"
PARTS = tuple("hooks invariants windows violations lost migration oracle audit overhead".split())
"""Keys of a report that have a path of their own."""
_LIVE: Mapping[str, Callable[[Snapshot], Any]] = {
    "functions": live_json.functions_json,
    "locks": live_json.locks_json,
    "entries": live_json.entries_json,
}
"""Paths of what is hot now."""
_DESCRIPTION = (Path(__file__).parent / "openapi.json").read_bytes()


def answer(data: object, status: int = 200) -> Response:
    """Return a response with JSON."""
    return Response(
        status, json_text(data, indent=None, separators=(",", ":")).encode() + b"\n", JSON
    )


def problem(status: int, what: str, *, where: str, why: str, hint: str) -> Response:
    """Return an error as JSON: what is wrong, where, why, and what to try."""
    return answer({"error": what, "where": where, "why": why, "hint": hint}, status)


def not_ready(where: str) -> Response:
    """Return the error of a daemon whose gate is not open yet. where: the path that was asked."""
    return problem(
        503,
        "the gate is not open",
        where=where,
        why="rmapd is compiling or attaching its probes",
        hint="ask again in some seconds; /-/ready answers 200 when it is done",
    )


class Api:
    """Answers requests for a snapshot."""

    def __init__(self, search: Search) -> None:
        self._search = search

    def __call__(
        self, ask: Request, s: Snapshot, points: Sequence[HistoryPoint], age: float = 0.0
    ) -> Response:
        """Answer a request for a path under /api/. age: seconds since the snapshot was taken."""
        path = ask.path.removeprefix(ROOT).strip("/")
        if not ask.path.startswith(ROOT) or (path and not ask.path.startswith(f"{ROOT}/")):
            return _no_path(ask.path)
        one_violation = path.startswith("violations/")
        template = "violations/{id}" if one_violation else path
        if template not in _PARAMETERS.paths:
            return _no_path(ask.path)
        try:
            fields = _PARAMETERS.read(template, ask.query)
        except BadQuery as bad:
            return problem(
                400, bad.what, where=f"{ask.path}?{ask.query}", why=bad.why, hint=bad.hint
            )
        if one_violation:
            one = s.violations.get(canonical(path.removeprefix("violations/")))
            return answer(json_form.violation_json(one)) if one else _no_violation(ask.path)
        if path == "openapi.json":
            return Response(200, _DESCRIPTION, JSON)
        if path in PARTS:
            return answer(_parts(s)[path])
        return answer(self._whole(path, fields, s, points, age))

    def _whole(
        self,
        path: str,
        fields: Mapping[str, Any],
        s: Snapshot,
        points: Sequence[HistoryPoint],
        age: float,
    ) -> Any:
        """Return what is at a path of the description that is no part of a report."""
        match path:
            case "":
                return live_json.index_json(s, standing(s, points, age)) | {"paths": _PATHS}
            case "status":
                return live_json.status_json(s, standing(s, points, age), points)
            case "report":
                return self._report(s, standing(s, points, age))
            case "protocols":
                return self._search.all_found(s, Query.of(fields))
            case "rates":
                return live_json.rates_json(points, fields.get("since", -1.0))
        return _LIVE[path](s)

    def _report(self, s: Snapshot, stands: Standing) -> dict[str, Any]:
        """Return a report like that of `exec`, without a command."""
        return _parts(s, stands) | {
            "command": {"argv": [], "exit_code": None},
            "protocols": self._search.everything(s),
        }


def _parts(s: Snapshot, stands: Standing | None = None) -> dict[str, Any]:
    """Return a report without its protocols, which are the most expensive part."""
    return json_form.as_json(dataclasses.replace(s, protocols=()), [], 0, stands)


_PATHS = [
    f"{ROOT}/{part}"
    for part in (
        *("report", *PARTS, "violations/{id}", "protocols"),
        *("status", *_LIVE, "rates", "openapi.json"),
    )
]


_PARAMETERS = Parameters(_DESCRIPTION)


def _no_path(where: str) -> Response:
    return problem(
        404,
        "no such path",
        where=where,
        why="the API has no path of this name",
        hint=f"{ROOT}/ lists all of them",
    )


def _no_violation(where: str) -> Response:
    return problem(
        404,
        "no violation has this id",
        where=where,
        why="this run of the daemon has found none, or its evidence was not kept",
        hint=f"{ROOT}/violations lists those of this run; rmapd explain reads the store",
    )
