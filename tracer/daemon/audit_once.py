"""`rmapd audit`: load the programs of the audit, make one pass, and detach."""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec

from tracer.config import Config
from tracer.daemon.levels import AUDIT_ONLY
from tracer.daemon.probes import running_kernel
from tracer.daemon.session import open_session
from tracer.errors import NotCheckable, RmapdError
from tracer.progress import ProgressLine
from tracer.results.audit import AuditResult


def audit_once(
    config: Config, pid: int | None = None, shown: ProgressLine | None = None
) -> AuditResult:
    """Look at the trees of every mm, or of one process's, and decide all that looks wrong.

    shown: where to show progress. Raises NotCheckable where this kernel does not allow it,
    RmapdError where the process has no mm.
    """
    shown = shown or ProgressLine()
    shown.phase("attaching")
    budget = config.audit_budget or Config().audit_budget
    settings = msgspec.structs.replace(
        config, fidelity=AUDIT_ONLY, audit_budget=budget, require=[], strict=False
    )
    with open_session(settings, running_kernel()) as session:
        if session.audit is None:
            raise NotCheckable(
                "the state of mms cannot be audited here",
                why=session.audit_reason,
                hint="rmapd doctor",
            )
        began = time.monotonic()

        def wait(seconds: float) -> None:
            shown.phase("looking again at what is in doubt")
            time.sleep(seconds)

        def listed(mms: int) -> Callable[[int], None]:
            shown.phase("looking at address spaces", total=mms)
            return shown.done

        session.audit.whole_pass(wait, pid, listed=listed)
        seconds, progress, tally = (
            time.monotonic() - began,
            session.audit.progress(),
            session.checker.tally,
        )
        if pid is not None and not progress.counted.get("mms"):
            raise RmapdError(
                f"process {pid} has no address space to look at",
                why="it does not exist, has exited, or is a kernel thread",
                hint="ps -p PID, or no --pid for all processes",
            )
        audited = {name: one for name, one in session.invariants.items() if one.audit}
        return AuditResult(
            session.probes.kernel.release,
            audited,
            {which: count for which, count in tally.checks.items() if which[0] in audited},
            {one.first.id: one for one in tally.violations.values()},
            progress,
            seconds,
            pid,
        )
