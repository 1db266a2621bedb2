"""`rmapd run`: the session, the exporter and the status line, until asked to stop."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import sys
import time
from collections.abc import Callable, Iterator

from tracer.config import Config
from tracer.instance import StopSignal
from tracer.plan import State
from tracer.report import violation_json
from tracer.session import Session, running_kernel
from tracer.snapshot import Snapshot
from tracer.web import Server, application

log = logging.getLogger("rmapd")


class Current:
    """The snapshot that the HTTP threads read; one reference, replaced whole. None until the gate is open."""

    def __init__(self) -> None:
        self.snapshot: Snapshot | None = None

    def __call__(self) -> Snapshot | None:
        return self.snapshot


def serve(config: Config, stop: StopSignal, duration: float | None) -> None:
    """Run until a signal or for `duration` seconds. The port is taken before anything is attached."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    current = Current()
    with Server(config.address, application(current)) as server, Session(config, running_kernel()) as session:
        where = f"http://{config.address[0]}:{server.port}"
        current.snapshot = session.snapshot()
        _announce(session, current.snapshot, where)
        end = time.monotonic() + duration if duration is not None else math.inf
        with _status(where) if sys.stdout.isatty() else contextlib.nullcontext(_no_status) as show:
            while not stop.asked and time.monotonic() < end:
                if session.step() or session.judge.new_findings:
                    before, current.snapshot = current.snapshot, session.snapshot()
                    _report(session, current.snapshot)
                    show(current.snapshot, before)
        session.stop()
        current.snapshot = session.snapshot()
        _report(session, current.snapshot)
    log.info("gate closed, detached%s", f" on signal {stop.asked}" if stop.asked else "")


def _no_status(_now: Snapshot, _before: Snapshot) -> None:
    """Without a terminal the log lines are all there is."""


def _announce(session: Session, snapshot: Snapshot, where: str) -> None:
    for hook in snapshot.hooks:
        if hook.state in (State.MISSING, State.DENIED):
            log.warning("hook %s is %s: %s", hook.hook.name, hook.state, hook.reason)
    if snapshot.oracle_reason:
        log.warning("the page-table oracle is not calibrated (%s): suspects stay suspects", snapshot.oracle_reason)
    covered = {level: [n for n, (found, _) in snapshot.coverage.items() if found == level] for level in ("full", "partial", "none")}
    log.info("coverage: %s", "; ".join(f"{level} {' '.join(names)}" for level, names in covered.items() if names))
    log.info("gate open on %s, fidelity %s, %s/metrics", snapshot.kernel, session.fidelity, where)


def _report(session: Session, snapshot: Snapshot) -> None:
    """A new signature is one JSON line on stdout, the same keys as in a report."""
    for finding in session.judge.new_findings:
        log.warning("%s %s: %s", finding.verdict, finding.invariant, finding.summary)
        print(json.dumps(violation_json(snapshot.violations[finding.id])), flush=True)
    session.judge.new_findings.clear()


@contextlib.contextmanager
def _status(where: str) -> Iterator[Callable[[Snapshot, Snapshot], None]]:
    """A table that redraws itself; only on a terminal."""
    from rich.live import Live

    from tracer.status import table

    with Live(auto_refresh=False) as live:
        yield lambda now, before: live.update(table(now, before, where), refresh=True)
