"""`rmapd exec`, the checker's side: attach, check while the command runs, settle, report.

The supervisor's side is exec_supervisor.py. It reports when the command has ended; when the checker
dies it calls report_after_death() in another process, and then report_from_log().
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import traceback
from typing import NoReturn

import msgspec

from tracer.daemon.after_death import find_remains, reopen_session
from tracer.daemon.exec_report import report_from_log, write
from tracer.daemon.probes import running_kernel
from tracer.daemon.session import Session, open_session
from tracer.daemon.snapshots import build_snapshot, build_totals
from tracer.daemon.start_log import log_start
from tracer.errors import RmapdError
from tracer.invariants.verdict import Verdict
from tracer.process import children
from tracer.report.timeline import TimelineSampler
from tracer.supervision.checkpoint import CheckpointMemory
from tracer.supervision.command import CHECKER_DIED, FAILED, CommandOutcome
from tracer.supervision.exec_request import ExecRequest
from tracer.supervision.supervisor import MessageChannel

log = logging.getLogger("rmapd")

__all__ = ["report_after_death", "report_from_log", "run_checker"]

_WAIT_SECONDS = 0.2


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
        session.audit_now()
        _sample(timeline, session)
        children.die_with_parent(0, supervisor)  # from here on there is something to report
        children.keep_process_after_main_thread()
        if log.isEnabledFor(logging.INFO):
            log_start(build_snapshot(session))
        channel.send("open")
        session.loop.wake_by(channel.fd)
        outcome, reported = None, not request.until_violation
        while outcome is None:
            if session.step(_WAIT_SECONDS):
                violated = _sample(timeline, session)
                if violated and not reported:
                    reported = True
                    channel.send("violated")
            for _, value in channel.received():
                ended = msgspec.convert(value, CommandOutcome)
                outcome = msgspec.structs.replace(ended, argv=[*request.command])
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
        session.audit_now()
        session.stop()
        timeline.add(*build_totals(session), last=True)
        snapshot = build_snapshot(session)
    return write(request, snapshot, outcome, timeline)  # detached: its reader may not read


def _sample(timeline: TimelineSampler, session: Session) -> bool:
    """Add a point to the timeline, with all windows until now. Return whether one is violated."""
    session.checker.count_protocols()
    seconds, totals = build_totals(session)
    timeline.add(seconds, totals)
    return totals[Verdict.VIOLATED.value] > 0


def report_after_death(
    request: ExecRequest, memory: CheckpointMemory, outcome: CommandOutcome
) -> int:
    """Go on from the dead checker's state with what the kernel's maps still have, and report."""
    timeline = TimelineSampler()
    with reopen_session(request.config, find_remains(memory)) as session:
        session.stop()
        timeline.add(*build_totals(session), last=True)
        snapshot = build_snapshot(session)
    return write(request, snapshot, outcome, timeline, {"not_kept": memory.not_kept})
