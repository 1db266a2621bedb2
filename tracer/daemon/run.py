"""`rmapd run`: a session, its outputs and the web server, until it is asked to stop."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path

import tracer
from tracer import logs
from tracer.config import CHANGEABLE, Config
from tracer.config_changes import as_json, as_text, changes
from tracer.daemon.crash_recovery import store_from_systemd
from tracer.daemon.probes import running_kernel
from tracer.daemon.rehearsal import rehearse
from tracer.daemon.session import Session, open_session
from tracer.daemon.snapshots import caught_up
from tracer.daemon.spans import Spans, listen
from tracer.daemon.start_log import log_start
from tracer.errors import RmapdError
from tracer.invariants.base import Coverage
from tracer.invariants.verdict import Verdict
from tracer.outputs import otlp
from tracer.outputs.log import FindingLog
from tracer.outputs.sinks import Sinks, open_store
from tracer.process import privileges, users
from tracer.process.lock_and_signals import ReloadSignal, StopSignal
from tracer.process.sd_notify import SystemdNotifier, take_stored_descriptors
from tracer.results.history import HistoryPoint
from tracer.results.latest import LatestSnapshot
from tracer.results.snapshot import Snapshot
from tracer.results.standing import entries
from tracer.results.standing_facts import standing
from tracer.screen import is_terminal
from tracer.supervision.supervisor import Supervised
from tracer.web import Access, Application, Server

log = logging.getLogger("rmapd")

_Show = Callable[[Snapshot, Snapshot, Sequence[HistoryPoint]], None]


@dataclass(frozen=True)
class Controls:
    """What may be asked of the daemon from outside.

    configuration() reads the configuration again; it raises RmapdError where it is wrong.
    """

    stop: StopSignal
    reload: ReloadSignal
    configuration: Callable[[], Config]


@dataclass(frozen=True)
class _Outputs:
    """Everything that gets the results of a session."""

    session: Session
    sinks: Sinks
    latest: LatestSnapshot
    systemd: SystemdNotifier
    access: Access

    def report(self, *, ended: bool = False) -> Snapshot:
        """Build a snapshot, and give it and the new findings to every output."""
        session = self.session
        snapshot = caught_up(session)
        read = session.config_read.and_rules(self.access.taken)
        snapshot = replace(snapshot, config_read=read)
        session.commit()
        new = session.checker.take_new_findings()
        snapshot = self.sinks.deliver(session.checker.tally, new, snapshot, ended=ended)
        session.commit(stored=self.sinks.stored)
        return self.latest.put(snapshot)

    def keep_counts(self) -> None:
        """Store counts that have changed, once a tick."""
        self.sinks.keep(self.session.checker.tally)
        self.session.commit(stored=self.sinks.stored)

    def status_line(self, snapshot: Snapshot) -> str:
        """Return the line for systemd, with the standing of the last minutes."""
        return status_line(snapshot, self.latest.points)


def serve(config: Config, controls: Controls, duration: float | None, checker: Supervised) -> None:
    """Run until a signal arrives or `duration` seconds are over. Raises RmapdError.

    The port is bound before anything is attached.
    """
    latest, systemd, kernel = LatestSnapshot(), SystemdNotifier(), running_kernel()
    if stored := take_stored_descriptors():
        store_from_systemd(config, stored)
        systemd.remove_stored_descriptors()
    access = Access(Path(config.web_config) if config.web_config else None)
    for concern in access.concerns(config.address[0]):
        log.warning("%s", concern)
    user = users.resolve(config.user) if config.drop_privileges else None
    if sys.stdout.isatty():
        import_module("tracer.daemon.terminal").import_early()
    with (
        privileges.threads_without(user) if config.drop_privileges else contextlib.nullcontext(),
        otlp.sender(config.otlp_endpoint, config.otlp_timeout_seconds, kernel.release) as collector,
        Server(config.address, Application(latest), access) as server,
        contextlib.closing(
            Sinks(open_store(config, kernel.release, user), FindingLog(time.time), collector)
        ) as sinks,
        open_session(config, kernel, memory=checker.memory) as session,
        contextlib.ExitStack() as spans_end,
    ):
        _report_progress_of_detaching(session, systemd)
        outputs = _Outputs(session, sinks, latest, systemd, access)
        scheme = "https" if access.context else "http"
        url = f"{scheme}://{config.address[0]}:{server.port}"
        levels = session.fidelity.govern(config, user)
        listening = listen(Path(config.lock_file), user)
        spans = Spans(listening, session, outputs.report, checker.owner)
        spans_end.callback(spans.close)
        if config.drop_privileges:
            kept = privileges.drop(lambda: rehearse(session), user)
            log.info("privileges dropped; kept: %s", kept)
            checker.report_privileges(user)
            _warn_of_unreadable_files(controls, access)
        checker.end_with_supervisor()
        session.recorder.run = sinks.run
        session.loop.wake_by(latest.asked)
        session.loop.wake_by(spans.fd)
        snapshot = outputs.report()
        if len(levels) > 1:
            log.info(
                "governor: programs may take %.2g %% of the machine's CPU time; levels %s",
                100 * config.budget,
                ", ".join(levels),
                extra=logs.fields(budget=config.budget, levels=levels),
            )
        log_start(snapshot, url)
        systemd.ready(outputs.status_line(snapshot))
        systemd.store_descriptors(session.recorder.descriptors)
        session.load_symbols()
        until = time.monotonic() + duration if duration is not None else math.inf
        with _live_table(url) if sys.stdout.isatty() else contextlib.nullcontext(None) as show:
            _loop(outputs, spans, controls, access, snapshot, until, show)
        systemd.stopping()
        session.stop()
        last = outputs.report(ended=True)
        spans.end(last)
        ended = standing(last, hooks=False)
        for line in ended.lines():
            log.info("%s", line, extra=logs.fields(standing=ended.colour.value))
        systemd.remove_stored_descriptors()
    number = controls.stop.asked
    how = f" on signal {number}" if number else ""
    log.info("gate closed, detached%s", how, extra=logs.fields(signal=number or None))


def _loop(
    outputs: _Outputs,
    spans: Spans,
    controls: Controls,
    access: Access,
    snapshot: Snapshot,
    until: float,
    show: _Show | None,
) -> None:
    """Step until `until` on time.monotonic(), or a stop signal; report when there is a reason."""
    session, latest, systemd = outputs.session, outputs.latest, outputs.systemd
    while not controls.stop.asked and time.monotonic() < until:
        ticked = session.step(spans.patience())
        spans.work()
        due = ticked and (show or latest.old())
        if session.checker.new_findings or latest.wanted() or due:
            before, snapshot = snapshot, outputs.report()
            if show:
                show(snapshot, before, latest.points)
        if ticked:
            outputs.keep_counts()
            systemd.alive(outputs.status_line(snapshot))
        if controls.reload.take():
            systemd.reloading()
            reload(session, controls.configuration, access)
            systemd.ready(outputs.status_line(snapshot))


def _report_progress_of_detaching(session: Session, systemd: SystemdNotifier) -> None:
    """Let systemd know that detaching goes on: on PREEMPT_RT it takes longer than WatchdogSec."""
    loaded = session.probes.loaded
    beat = loaded.closed

    def closed() -> None:
        beat()
        systemd.working()

    loaded.closed = closed


def _warn_of_unreadable_files(controls: Controls, access: Access) -> None:
    """Warn now of files that the new user cannot read, and not at the first SIGHUP."""
    if not os.access(__file__, os.R_OK):
        log.warning(
            "%s cannot be read by the user %s: modules that are not imported yet are missing."
            " Try: make install",
            Path(tracer.__file__).parent,
            users.name_of(os.getuid()),
        )
    try:
        controls.configuration()
    except RmapdError as error:
        log.warning("SIGHUP would change nothing: %s", error)
    if why := access.unreadable():
        log.warning("SIGHUP would not change who may read: %s", why)


def reload(session: Session, configuration: Callable[[], Config], access: Access) -> None:
    """Read the configuration and the access rules again; what is wrong is logged, and not taken."""
    taken = reload_configuration(session, configuration)
    session.config_read = session.config_read.after(taken, time.time())
    access.reread()


def reload_configuration(session: Session, configuration: Callable[[], Config]) -> bool:
    """Read the configuration again, take it over, and log what changed.

    A wrong one is logged and changes nothing. Returns whether it was taken over.
    """
    before = session.config
    try:
        wanted = configuration()
        session.change(wanted)
    except RmapdError as error:
        log.error("the configuration stays as it was: %s", error.in_a_line)
        return False
    found = changes(before, wanted)
    taken = {name: change for name, change in found.items() if name in CHANGEABLE}
    restart = {name: change for name, change in found.items() if name not in CHANGEABLE}
    parts = [as_text(taken)] if taken else []
    parts += [f"a restart is needed for {as_text(restart)}"] if restart else []
    shown = log.isEnabledFor(logging.INFO)
    logs.configure(wanted.log_level, wanted.log_format)
    if shown or log.isEnabledFor(logging.INFO):  # a change of the level is logged
        logs.always(
            logging.INFO,
            f"configuration read again: {'; '.join(parts) or 'nothing changed'}",
            __file__,
            changed=as_json(taken),
            restart_needed=as_json(restart),
        )
    return True


def status_line(snapshot: Snapshot, points: Sequence[HistoryPoint] = ()) -> str:
    """Return the state in one line, for `systemctl status`. points: the history of counts."""
    now = standing(snapshot, points)
    why = f" ({', '.join(now.reasons)})" if now.reasons else ""
    covered = sum(level is not Coverage.NONE for level, _ in snapshot.coverage.values())
    violated, suspect = snapshot.total(Verdict.VIOLATED), snapshot.total(Verdict.SUSPECT)
    return (
        f"{now.colour}{why}: gate open on {snapshot.kernel},"
        f" {covered} of {len(snapshot.coverage)} invariants covered;"
        f" {violated} violated, {suspect} suspect of {sum(snapshot.checks.values())} checks;"
        f" {entries(snapshot.outstanding)} outstanding"
    )


@contextlib.contextmanager
def _live_table(url: str) -> Iterator[_Show]:
    """Draw a table on the terminal that is redrawn with each snapshot.

    The log appears above it, where it goes to the same terminal.
    """
    from rich.live import Live

    from tracer.daemon.terminal import table

    with Live(auto_refresh=False, redirect_stderr=is_terminal(sys.stderr)) as live:
        yield lambda now, before, points: live.update(
            table(now, before, url, points, live.console.width, live.console.height),
            refresh=True,
        )
