"""`rmapd exec`, the judge's side: attach, judge while the supervisor runs the command, settle, close the gate, report.

The other side is exec_supervisor.py: it says when the command has ended, and does the same from what is left where the judge has died."""

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
from tracer.daemon.after_death import aftermath
from tracer.daemon.session import Session, running_kernel
from tracer.errors import RmapdError
from tracer.invariants.verdict import Verdict
from tracer.process import children
from tracer.report import terminal
from tracer.report.junit import as_junit
from tracer.report.ktap import as_ktap
from tracer.report.timeline import TimelineSampler
from tracer.results import json_form
from tracer.results.snapshot import Snapshot
from tracer.supervision.checkpoint import Memory, read
from tracer.supervision.command import FAILED, JUDGE_DIED, Outcome
from tracer.supervision.exec_order import ExecOrder, bare
from tracer.supervision.supervisor import SupervisorLine

_TURN_SECONDS = 0.2
_ELSEWHERE = "the same with --format json or ktap, to a file on another file system"


def in_judge(order: ExecOrder, memory: Memory, line: SupervisorLine) -> NoReturn:
    """All that the judge does in its life."""
    code = FAILED
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # the supervisor decides what they mean
        code = _judge(order, memory, line)
        line.say("done", code)
    except RmapdError as error:
        line.say_error(error)
    except BaseException:  # not a word to the supervisor: it takes over
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _judge(order: ExecOrder, memory: Memory, line: SupervisorLine) -> int:
    pulse, supervisor = TimelineSampler(), os.getppid()
    with Session(order.config, running_kernel(), memory=memory) as session:
        pulse.add(*session.totals())
        children.die_with_parent(0, supervisor)  # from here on there is something to report
        children.stay_after_main_thread()
        line.say("open")
        session.wake_by(line.fd)
        outcome = None
        while outcome is None:
            if session.step(_TURN_SECONDS):
                pulse.add(*session.totals())
            for _, said in line.heard():
                outcome = msgspec.convert(said, Outcome)
            if os.getppid() != supervisor:
                early = {"reason": "the supervising process died"}
                outcome = Outcome(
                    list(order.command),
                    None,
                    "it is not known: nobody waits for it",
                    JUDGE_DIED,
                    early,
                )
        session.settle(order.config.settle_seconds)
        session.stop()
        pulse.add(*session.totals(), last=True)
        return _write(order, session.snapshot(), outcome, pulse)


def after_death(order: ExecOrder, memory: Memory, outcome: Outcome) -> int:
    """The judge has died: judge what the kernel's books still have, from where it was, and report."""
    pulse = TimelineSampler()
    with aftermath(order.config, memory) as session:
        session.stop()
        pulse.add(*session.totals(), last=True)
        return _write(order, session.snapshot(), outcome, pulse, {"not_kept": memory.not_kept})


def from_log(order: ExecOrder, memory: Memory, outcome: Outcome) -> int:
    """The judge has died, and so has who judged after it: what the judge had found."""
    state = read(memory).state
    found = bare(outcome) | {
        "violations": [
            json_form.violation_json(violation) for violation in state.violations.values()
        ]
    }
    for invariant, verdict, count in state.checks:
        one = found["invariants"].setdefault(
            invariant, {"title": "", "coverage": "none", "reason": outcome.reason, "checks": {}}
        )
        one["checks"][verdict.value] = count
    lines = [f"ENDED EARLY: {outcome.reason}; this is what was found until then"]
    for violation in state.violations.values():
        lines += ["", *terminal.violation_text(violation)]
    _put(order, json.dumps(found, indent=1) + "\n", "\n".join(lines) + "\n")
    return outcome.code


def _write(
    order: ExecOrder,
    snapshot: Snapshot,
    outcome: Outcome,
    pulse: TimelineSampler,
    more: Mapping[str, Any] | None = None,
) -> int:
    """Print, write the files, and the exit code."""
    snapshot = replace(snapshot, ended_early=outcome.reason if outcome.early else "")
    bad = {"violated": (Verdict.VIOLATED,), "suspect": (Verdict.VIOLATED, Verdict.SUSPECT)}.get(
        order.fail_on, ()
    )
    fails = bad or (
        Verdict.VIOLATED,
    )  # --fail-on never is about the exit code: what is violated is not ok all the same
    code, reason = outcome.code, outcome.reason
    if code != JUDGE_DIED and any(
        count for (_, verdict), count in snapshot.checks.items() if verdict in bad
    ):
        code, reason = order.violation_code, f"{order.fail_on} (--fail-on)"
    command, exit_code = (
        list(order.command),
        outcome.code if outcome.exit_code is None else outcome.exit_code,
    )
    early = {"ended_early": {**outcome.early, **(more or {})}} if outcome.early else {}
    found = json_form.as_json(snapshot, command, exit_code) | outcome.as_json() | early
    found |= {"exit": {"code": code, "reason": reason}, "timeline": pulse.as_json()}
    as_json = json.dumps(found, indent=1) + "\n"
    said = {"json": lambda: as_json, "ktap": lambda: as_ktap(snapshot, fails)}.get(order.form)
    text = said() if said else terminal.as_text(snapshot, command, exit_code)
    if not said and outcome.early:
        text = f"ENDED EARLY: {outcome.reason}; the command: {outcome.ended}\n{text}"
    _put(order, as_json, text, as_junit(snapshot, command, exit_code, fails) if order.junit else "")
    return code


def _put(order: ExecOrder, as_json: str, text: str, junit: str = "") -> None:
    """What cannot be written here may be written there. A reader that has gone away is no fault."""
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
        if order.report is not None:
            atomic_file.write(order.report, as_json, "the report", hint=_ELSEWHERE)
        if order.junit is not None and junit:
            atomic_file.write(order.junit, junit, "the JUnit file", hint=_ELSEWHERE)
