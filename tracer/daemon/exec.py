"""`rmapd exec`, the checker's side: attach, check while the command runs, settle, report.

The supervisor's side is exec_supervisor.py. It reports when the command has ended; when the checker
dies it calls report_after_death() in another process, and then report_from_log().
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NoReturn

import click
import msgspec

from tracer import atomic_file
from tracer.daemon.after_death import find_remains, reopen_session
from tracer.daemon.probes import running_kernel
from tracer.daemon.session import Session, open_session
from tracer.daemon.snapshots import build_snapshot, build_totals
from tracer.errors import RmapdError
from tracer.invariants.verdict import Verdict
from tracer.process import children
from tracer.report import terminal
from tracer.report.junit import as_junit
from tracer.report.ktap import as_ktap
from tracer.report.timeline import TimelineSampler
from tracer.results import json_form
from tracer.results.snapshot import Snapshot
from tracer.supervision.checkpoint import CheckpointMemory, read
from tracer.supervision.command import CHECKER_DIED, FAILED, CommandOutcome
from tracer.supervision.exec_request import ExecRequest, minimal_report
from tracer.supervision.supervisor import MessageChannel

_WAIT_SECONDS = 0.2
_WRITE_HINT = "the same with --format json or ktap, to a file on another file system"


def run_checker(
    request: ExecRequest, memory: CheckpointMemory, channel: MessageChannel
) -> NoReturn:
    """Do all the work of the checker process, and exit."""
    code = FAILED
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # the supervisor decides what they mean
        code = _run(request, memory, channel)
        channel.send("done", code)
    except RmapdError as error:
        channel.send_error(error)
    except BaseException:  # without a message, the supervisor takes over
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _run(request: ExecRequest, memory: CheckpointMemory, channel: MessageChannel) -> int:
    timeline, supervisor = TimelineSampler(), os.getppid()
    with open_session(request.config, running_kernel(), memory=memory) as session:
        _sample(timeline, session)
        children.die_with_parent(0, supervisor)  # from here on there is something to report
        children.keep_process_after_main_thread()
        channel.send("open")
        session.loop.wake_by(channel.fd)
        outcome = None
        while outcome is None:
            if session.step(_WAIT_SECONDS):
                _sample(timeline, session)
            for _, value in channel.received():
                outcome = msgspec.convert(value, CommandOutcome)
            if os.getppid() != supervisor:
                early = {"reason": "the supervising process died"}
                outcome = CommandOutcome(
                    list(request.command),
                    None,
                    "unknown: no process waits for it",
                    CHECKER_DIED,
                    early,
                )
        session.settle(request.config.settle_seconds)
        session.stop()
        timeline.add(*build_totals(session), last=True)
        return _write(request, build_snapshot(session), outcome, timeline)


def _sample(timeline: TimelineSampler, session: Session) -> None:
    """Add a point to the timeline, with all windows until now."""
    session.checker.count_protocols()
    timeline.add(*build_totals(session))


def report_after_death(
    request: ExecRequest, memory: CheckpointMemory, outcome: CommandOutcome
) -> int:
    """Go on from the dead checker's state with what the kernel's maps still have, and report."""
    timeline = TimelineSampler()
    with reopen_session(request.config, find_remains(memory)) as session:
        session.stop()
        timeline.add(*build_totals(session), last=True)
        not_kept = {"not_kept": memory.not_kept}
        return _write(request, build_snapshot(session), outcome, timeline, not_kept)


def report_from_log(request: ExecRequest, memory: CheckpointMemory, outcome: CommandOutcome) -> int:
    """Report what the dead checker had found; report_after_death() has died or failed as well."""
    state = read(memory).state
    found = minimal_report(outcome) | {
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
    return outcome.code


def _write(
    request: ExecRequest,
    snapshot: Snapshot,
    outcome: CommandOutcome,
    timeline: TimelineSampler,
    more: Mapping[str, Any] | None = None,
) -> int:
    """Print the report, write the files, and return the exit code."""
    snapshot = replace(snapshot, ended_early=outcome.reason if outcome.early else "")
    bad = {"violated": (Verdict.VIOLATED,), "suspect": (Verdict.VIOLATED, Verdict.SUSPECT)}.get(
        request.fail_on, ()
    )
    not_ok = bad or (Verdict.VIOLATED,)  # --fail-on never: the exit code changes, not this
    code, reason = outcome.code, outcome.reason
    if code != CHECKER_DIED and any(
        count for (_, verdict), count in snapshot.checks.items() if verdict in bad
    ):
        code, reason = request.violation_code, f"{request.fail_on} (--fail-on)"
    command, exit_code = (
        list(request.command),
        outcome.code if outcome.exit_code is None else outcome.exit_code,
    )
    early = {"ended_early": {**outcome.early, **(more or {})}} if outcome.early else {}
    found = json_form.as_json(snapshot, command, exit_code) | outcome.as_json() | early
    found |= {"exit": {"code": code, "reason": reason}, "timeline": timeline.as_json()}
    as_json = json.dumps(found, indent=1) + "\n"
    if request.form == "json":
        text = as_json
    elif request.form == "ktap":
        text = as_ktap(snapshot, not_ok)
    else:
        text = terminal.as_text(snapshot, command, exit_code)
        if outcome.early:
            text = f"ENDED EARLY: {outcome.reason}; the command: {outcome.ended}\n{text}"
    junit = as_junit(snapshot, command, exit_code, not_ok) if request.junit else ""
    _put(request, as_json, text, junit)
    return code


def _put(request: ExecRequest, as_json: str, text: str, junit: str = "") -> None:
    """Print the text, then write the files even where printing fails.

    A reader that has closed its pipe is not an error.
    """
    try:
        click.echo(text, nl=False)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    except OSError as error:
        raise RmapdError(
            "cannot write to the standard output",
            why=error.strerror or str(error),
            hint="--report FILE",
        ) from error
    finally:
        if request.report is not None:
            atomic_file.write(request.report, as_json, "the report", hint=_WRITE_HINT)
        if request.junit is not None and junit:
            atomic_file.write(request.junit, junit, "the JUnit file", hint=_WRITE_HINT)
