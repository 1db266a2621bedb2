"""`rmapd run`: the session, the exporter and the status line, until asked to stop."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import tracer
from tracer.attach.plan import HookState
from tracer.config import CHANGEABLE, Config
from tracer.daemon.found_after import keep_from_systemd
from tracer.daemon.session import Session, running_kernel
from tracer.errors import RmapdError
from tracer.invariants.base import Coverage
from tracer.invariants.verdict import Finding, Verdict
from tracer.outputs import otlp
from tracer.outputs.log import FindingLog
from tracer.outputs.sinks import Sinks, open_store
from tracer.process import privileges
from tracer.process.lock_and_signals import ReloadSignal, StopSignal
from tracer.process.sd_notify import SystemdNotifier, taken_back
from tracer.results.history import HistoryPoint
from tracer.results.latest import LatestSnapshot
from tracer.results.snapshot import Snapshot
from tracer.results.standing import entries
from tracer.results.standing_facts import standing
from tracer.supervision.supervisor import Supervised
from tracer.web import Access, Application, Server

log = logging.getLogger("rmapd")


@dataclass(frozen=True)
class Asked:
    """What the world may ask of the daemon: to stop, and to take over what `configuration` returns now (RmapdError: keep the old one)."""

    stop: StopSignal
    reload: ReloadSignal
    configuration: Callable[[], Config]


def serve(config: Config, asked: Asked, duration: float | None, judge: Supervised) -> None:
    """Run until a signal or for `duration` seconds. The port is taken before anything is attached."""
    current, supervisor, kernel = LatestSnapshot(), SystemdNotifier(), running_kernel()
    _take_back(config, supervisor)
    access = Access(Path(config.web_config) if config.web_config else None)
    for concern in access.concerns(config.address[0]):
        log.warning("%s", concern)
    who = privileges.user(config.user) if config.drop_privileges else None
    if sys.stdout.isatty():
        import_module("tracer.daemon.terminal").warm()
    with (
        privileges.threads_without(who) if config.drop_privileges else contextlib.nullcontext(),
        otlp.sender(config.otlp_endpoint, config.otlp_timeout_seconds, kernel.release) as collector,
        Server(config.address, Application(current), access) as server,
        contextlib.closing(
            Sinks(open_store(config, kernel.release, who), FindingLog(time.time), collector)
        ) as reaction,
        Session(config, kernel, memory=judge.memory) as session,
    ):

        def look(*, ended: bool = False) -> Snapshot:
            now = session.snapshot()  # first: it may find something new
            session.recorder.commit()
            now = reaction.deliver(
                session.judge.tally, session.judge.take_new_findings(), now, ended=ended
            )
            session.recorder.commit(stored=reaction.stored)
            return current.put(now)

        where, levels = (
            f"http{'s' if access.context else ''}://{config.address[0]}:{server.port}",
            session.govern(who=who),
        )
        if config.drop_privileges:
            _drop(session, judge, who)
            _foresee(asked, access)
        judge.survive()
        session.recorder.run = reaction.run
        session.wake_by(current.asked)
        latest = look()
        _announce(session, latest, where)
        if len(levels) > 1:
            log.info(
                "governor: programs may take %.2g %% of the machine's CPU time; levels %s",
                100 * config.budget,
                ", ".join(levels),
            )
        supervisor.ready(_in_a_line(latest, current.points))
        supervisor.keep(session.recorder.descriptors)
        session.warm()
        end = time.monotonic() + duration if duration is not None else math.inf
        with _status(where) if sys.stdout.isatty() else contextlib.nullcontext(None) as show:
            while not asked.stop.asked and time.monotonic() < end:
                ticked = session.step()
                if (
                    session.judge.new_findings
                    or current.wanted()
                    or (ticked and (show or current.old()))
                ):
                    before, latest = latest, look()
                    if show:
                        show(latest, before, current.points)
                if ticked:
                    reaction.keep(session.judge.tally)
                    session.recorder.commit(stored=reaction.stored)
                    supervisor.alive(_in_a_line(latest, current.points))
                if asked.reload.taken():
                    supervisor.reloading()
                    _reload(session, asked.configuration)
                    access.reread()
                    supervisor.ready(_in_a_line(latest, current.points))
        supervisor.stopping()
        session.stop()
        for line in standing(look(ended=True)).lines():
            log.info("%s", line)
        supervisor.forget()
    log.info(
        "gate closed, detached%s", f" on signal {asked.stop.asked}" if asked.stop.asked else ""
    )


def _taken(findings: list[Finding]) -> tuple[Finding, ...]:
    """Take the new findings out of the checker's list."""
    new = tuple(findings)
    findings.clear()
    return new


def _drop(session: Session, judge: Supervised, who: privileges.User | None) -> None:
    log.info("privileges dropped; kept: %s", privileges.drop(session.rehearse, who))
    judge.gave_up(who)


def _foresee(asked: Asked, access: Access) -> None:
    """What the user that we are now cannot read: better said at the start than at the first SIGHUP."""
    if not os.access(__file__, os.R_OK):
        user = privileges.name_of(os.getuid())
        log.warning(
            "%s cannot be read by the user %s: it goes on with what it has read. Try: make install",
            Path(tracer.__file__).parent,
            user,
        )
    try:
        asked.configuration()
    except RmapdError as error:
        log.warning("SIGHUP would change nothing: %s", error)
    if why := access.unreadable():
        log.warning("SIGHUP would not change who may read: %s", why)


def _take_back(config: Config, supervisor: SystemdNotifier) -> None:
    """What the last run left when it died, if systemd kept it: before anything begins anew."""
    if kept := taken_back():
        keep_from_systemd(config, kept)
        supervisor.forget()


def _reload(session: Session, configuration: Callable[[], Config]) -> None:
    """A wrong configuration changes nothing: a daemon that runs is worth more than one that was right about its file."""
    try:
        stay = session.change(configuration())
    except RmapdError as error:
        log.error("the configuration stays as it was: %s", error.in_a_line)
        return
    now = ", ".join(f"{name} {getattr(session.config, name):g}" for name in CHANGEABLE)
    log.info(
        "configuration read again: %s%s",
        now,
        f"; a restart is needed for {', '.join(stay)}" if stay else "",
    )


def _in_a_line(s: Snapshot, points: Sequence[HistoryPoint] = ()) -> str:
    """For `systemctl status`."""
    covered = sum(level is not Coverage.NONE for level, _ in s.coverage.values())
    found = f"{s.total(Verdict.VIOLATED)} violated, {s.total(Verdict.SUSPECT)} suspect of {sum(s.checks.values())} checks"
    stands = standing(s, points)
    why = f" ({', '.join(stands.reasons)})" if stands.reasons else ""
    there = f"{entries(s.outstanding)} outstanding"
    return f"{stands.colour}{why}: gate open on {s.kernel}, {covered} of {len(s.coverage)} invariants covered; {found}; {there}"


def _announce(session: Session, snapshot: Snapshot, where: str) -> None:
    absent = defaultdict[tuple[bool, str], list[str]](list)
    for hook in snapshot.hooks:
        if hook.state in (HookState.MISSING, HookState.DENIED):
            absent[hook.tried, hook.reason].append(hook.hook.name)
    for (
        (tried, reason),
        names,
    ) in absent.items():  # what this kernel cannot have is no event; what it should have had is
        level, said = (
            (logging.WARNING, "could not be attached")
            if tried
            else (logging.INFO, "not in this kernel")
        )
        log.log(
            level,
            "hook%s %s: %s (%s)",
            "s" if len(names) > 1 else "",
            said,
            ", ".join(names),
            reason,
        )
    if snapshot.oracle_reason:
        log.warning(
            "the page-table oracle is not calibrated (%s): suspects stay suspects",
            snapshot.oracle_reason,
        )
    covered = {
        level: [n for n, (found, _) in snapshot.coverage.items() if found == level]
        for level in ("full", "partial", "none")
    }
    log.info(
        "coverage: %s",
        "; ".join(f"{level} {' '.join(names)}" for level, names in covered.items() if names),
    )
    for line in standing(snapshot).lines():
        log.info("%s", line)
    log.info("gate open on %s, fidelity %s, %s/metrics", snapshot.kernel, snapshot.fidelity, where)


@contextlib.contextmanager
def _status(where: str) -> Iterator[Callable[[Snapshot, Snapshot, Sequence[HistoryPoint]], None]]:
    """A table that redraws itself; only on a terminal."""
    from rich.live import Live

    from tracer.daemon.terminal import table

    with Live(auto_refresh=False) as live:
        yield lambda now, before, points: live.update(
            table(now, before, where, points), refresh=True
        )
