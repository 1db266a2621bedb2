"""What `rmapd exec` writes at its end: the report in each form, and the exit code."""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from tracer import atomic_file, screen
from tracer.errors import NOT_CHECKABLE
from tracer.invariants.base import Coverage
from tracer.invariants.verdict import Verdict
from tracer.outcome import print_text
from tracer.report import terminal
from tracer.report.junit import as_junit
from tracer.report.ktap import as_ktap
from tracer.report.timeline import TimelineSampler
from tracer.results import json_form
from tracer.results.snapshot import Snapshot
from tracer.supervision.checkpoint import CheckpointMemory, read
from tracer.supervision.command import CHECKER_DIED, CommandOutcome, ExitSource
from tracer.supervision.exec_request import ExecRequest, Exit, minimal_report

_WRITE_HINT = "the same with --format json or ktap, to a file on another file system"


def report_from_log(request: ExecRequest, memory: CheckpointMemory, outcome: CommandOutcome) -> int:
    """Report what the dead checker had found; report_after_death() has died or failed as well."""
    state = read(memory).state
    ending = request.exit_of(outcome)
    found = minimal_report(outcome, ending) | {
        "violations": [
            json_form.violation_json(violation) for violation in state.violations.values()
        ]
    }
    for invariant, verdict, count in state.checks:
        one = found["invariants"].setdefault(
            invariant, {"title": "", "coverage": "none", "reason": outcome.reason, "checks": {}}
        )
        one["checks"][verdict.value] = count
    lines = [f"ENDED EARLY: {outcome.reason}; this is what was found before"]
    for violation in state.violations.values():
        lines += ["", *terminal.violation_text(violation)]
    _put(request, json.dumps(found, indent=1) + "\n", "\n".join(lines) + "\n")
    return ending.code


def write(
    request: ExecRequest,
    snapshot: Snapshot,
    outcome: CommandOutcome,
    timeline: TimelineSampler,
    more: Mapping[str, Any] | None = None,
    keys: Mapping[str, Any] | None = None,
    about: str = "",
) -> int:
    """Print the report, write the files, and return the exit code.

    more: keys of `ended_early`. keys: further ones of the report. about: a line for its head.
    """
    snapshot = replace(snapshot, ended_early=outcome.reason if outcome.early else "")
    bad = {"violated": (Verdict.VIOLATED,), "suspect": (Verdict.VIOLATED, Verdict.SUSPECT)}.get(
        request.fail_on, ()
    )
    not_ok = bad or (Verdict.VIOLATED,)  # --fail-on never: the exit code changes, not this
    ending = exit_of(request, snapshot, outcome, bad)
    command, exit_code = (
        list(request.command),
        outcome.code if outcome.exit_code is None else outcome.exit_code,
    )
    early = {"ended_early": {**outcome.early, **(more or {})}} if outcome.early else {}
    found = json_form.as_json(snapshot, command, exit_code) | outcome.as_json() | early
    found |= {"exit": ending.as_json(), "timeline": timeline.as_json()} | dict(keys or {})
    as_json = json.dumps(found, indent=1) + "\n"
    head = "\n".join(filter(None, [ending.sentence(outcome), about]))
    if request.form == "json":
        text = as_json
    elif request.form == "ktap":
        text = as_ktap(snapshot, not_ok, head)
    else:
        text = terminal.as_text(snapshot, command, head, screen.columns(sys.stdout))
        if outcome.early:
            text = f"ENDED EARLY: {outcome.reason}; the command: {outcome.ended}\n{text}"
    properties = {"exit.code": str(ending.code), "exit.source": ending.source.value}
    junit = as_junit(snapshot, command, exit_code, not_ok, properties) if request.junit else ""
    _put(request, as_json, text, junit)
    return ending.code


def exit_of(
    request: ExecRequest, snapshot: Snapshot, outcome: CommandOutcome, bad: Collection[Verdict]
) -> Exit:
    """Return how rmapd exits. bad: the verdicts of --fail-on.

    A run that nothing watched to its end has the code of that, whatever was found before.
    """
    ending = request.exit_of(outcome)
    if outcome.code == CHECKER_DIED and outcome.early:
        return ending
    if any(count for (_, verdict), count in snapshot.checks.items() if verdict in bad):
        reason = f"{request.fail_on} (--fail-on)"
        return Exit(request.violation_code, reason, ExitSource.VIOLATION)
    unchecked = [name for name in snapshot.required if _unchecked(snapshot, name)]
    if unchecked and ending.source is ExitSource.COMMAND:
        reason = f"{', '.join(unchecked)} required, and not checked all the time"
        return Exit(NOT_CHECKABLE, reason, ExitSource.REQUIRED)
    return ending


def _unchecked(snapshot: Snapshot, name: str) -> bool:
    return snapshot.coverage[name][0] is Coverage.NONE


def _put(request: ExecRequest, as_json: str, text: str, junit: str = "") -> None:
    """Write the files, then print the text: its reader may wait, or be gone."""
    try:
        if request.report is not None:
            atomic_file.write(request.report, as_json, "the report", hint=_WRITE_HINT)
        if request.junit is not None and junit:
            atomic_file.write(request.junit, junit, "the JUnit file", hint=_WRITE_HINT)
    finally:
        print_text(text, "--report FILE")
