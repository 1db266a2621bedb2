"""JSON under /api/v1/: each part of a report at a path of its own, the whole report, and rates."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tracer
from tracer.printable import json_text
from tracer.results import json_form
from tracer.results.history import HistoryPoint
from tracer.results.snapshot import Snapshot
from tracer.results.standing import Standing
from tracer.results.standing_facts import standing
from tracer.web.http_message import JSON, Request, Response
from tracer.web.search import Query, Search

ROOT = "/api/v1"
PARTS = ("hooks", "invariants", "windows", "violations", "lost", "migration", "oracle", "overhead")
"""Keys of a report that have a path of their own."""
_NO_PATH = f"no such path; {ROOT}/ lists all of them"
_DESCRIPTION = (Path(__file__).parent / "openapi.json").read_bytes()


def answer(data: object, status: int = 200) -> Response:
    """Return a response with JSON."""
    return Response(
        status, json_text(data, indent=None, separators=(",", ":")).encode() + b"\n", JSON
    )


def problem(status: int, what: str) -> Response:
    """Return an error as JSON."""
    return answer({"error": what}, status)


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
            return problem(404, _NO_PATH)
        if path.startswith("violations/"):
            found = s.violations.get(path.removeprefix("violations/"))
            return (
                answer(json_form.violation_json(found))
                if found
                else problem(404, "no violation has this id")
            )
        if path == "protocols":
            return answer(self._search.all_found(s, Query.of(ask.fields)))
        if path == "openapi.json":
            return Response(200, _DESCRIPTION, JSON)
        if path == "report":
            return answer(self._report(s, standing(s, points, age)))
        if path in ("", "rates"):
            return answer(rates(points) if path else index(s, standing(s, points, age)))
        return answer(_parts(s)[path]) if path in PARTS else problem(404, _NO_PATH)

    def _report(self, s: Snapshot, stands: Standing) -> dict[str, Any]:
        """Return a report like that of `exec`, without a command."""
        return _parts(s, stands) | {
            "command": {"argv": [], "exit_code": None},
            "protocols": self._search.everything(s),
        }


def _parts(s: Snapshot, stands: Standing | None = None) -> dict[str, Any]:
    """Return a report without its protocols, which are the most expensive part."""
    return json_form.as_json(dataclasses.replace(s, protocols=()), [], 0, stands)


def index(s: Snapshot, stands: Standing) -> dict[str, Any]:
    """Return the version, the state of the daemon and the paths that are served."""
    taken = datetime.datetime.fromtimestamp(s.taken_seconds, datetime.UTC).isoformat(
        timespec="milliseconds"
    )
    return {
        "rmapd": tracer.__version__,
        "kernel": s.kernel,
        "fidelity": s.fidelity,
        "gate_open": s.gate_open,
        "standing": stands.as_json(),
        "duration_seconds": round(s.running_seconds, 3),
        "taken": taken.replace("+00:00", "Z"),
        "paths": [
            f"{ROOT}/{part}"
            for part in ("report", *PARTS, "violations/{id}", "protocols", "rates", "openapi.json")
        ],
    }


def rates(points: Sequence[HistoryPoint]) -> Mapping[str, Any]:
    """Return the counts of the last ten minutes in columns, one row every two to ten seconds.

    A rate is the difference of two counts over the difference of their `seconds`.
    """
    return {
        "seconds": [round(p.seconds, 3) for p in points],
        "checks": {
            name: [p.checks[name] for p in points] for name in (points[-1].checks if points else ())
        },
        "unverifiable": [p.unverifiable for p in points],
        "windows": [p.windows for p in points],
        "entries": [p.entries for p in points],
        "outstanding": [p.outstanding for p in points],
        "lost": [p.lost for p in points],
        "probe_seconds": [round(p.probe_seconds, 6) for p in points],
        "user_seconds": [round(p.user_seconds, 3) for p in points],
    }
