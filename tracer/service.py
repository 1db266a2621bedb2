"""`rmapd run`: the session, the exporter and the status line, until asked to stop."""

from __future__ import annotations

import contextlib
import logging
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tracer import otlp, privileges
from tracer.config import CHANGEABLE, Config
from tracer.current import Current
from tracer.errors import RmapdError
from tracer.found_after import keep_from_systemd
from tracer.instance import ReloadSignal, StopSignal
from tracer.invariant import Coverage
from tracer.journal import Journal
from tracer.notify import Supervisor, taken_back
from tracer.plan import State
from tracer.reaction import Reaction, open_store
from tracer.session import Session, running_kernel
from tracer.snapshot import Snapshot
from tracer.supervisor import Supervised
from tracer.verdict import Verdict
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
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    current, supervisor, kernel = Current(), Supervisor(), running_kernel()
    _take_back(config, supervisor)
    access = Access(Path(config.web_config) if config.web_config else None)
    for concern in access.concerns(config.address[0]):
        log.warning("%s", concern)
    with (
        privileges.threads_without() if config.drop_privileges else contextlib.nullcontext(),
        otlp.sender(config.otlp_endpoint, config.otlp_timeout_seconds, kernel.release) as collector,
        Server(config.address, Application(current), access) as server,
        contextlib.closing(Reaction(open_store(config, kernel.release), Journal(time.time), collector)) as reaction,
        Session(config, kernel, memory=judge.memory) as session,
    ):

        def look(*, ended: bool = False) -> Snapshot:
            now = session.snapshot()  # first: it may find something new
            session.recorder.commit()
            now = reaction.react(session.judge.tally, session.judge.new_findings, now, ended=ended)
            session.recorder.commit(stored=reaction.stored)
            return current.put(now)

        where = f"http{'s' if access.context else ''}://{config.address[0]}:{server.port}"
        levels = session.govern()
        if config.drop_privileges:
            log.info("privileges dropped; kept: %s", privileges.drop(session.rehearse))
            judge.gave_up()
        judge.survive()
        session.recorder.run = reaction.run
        session.wake_by(current.asked)
        latest = look()
        _announce(session, latest, where)
        if len(levels) > 1:
            log.info("governor: programs may take %.2g %% of the machine's CPU time; levels %s", 100 * config.budget, ", ".join(levels))
        supervisor.ready(_in_a_line(latest))
        supervisor.keep(session.recorder.descriptors)
        session.warm()
        end = time.monotonic() + duration if duration is not None else math.inf
        with _status(where) if sys.stdout.isatty() else contextlib.nullcontext(None) as show:
            while not asked.stop.asked and time.monotonic() < end:
                ticked = session.step()
                if session.judge.new_findings or current.wanted() or (ticked and (show or current.old())):
                    before, latest = latest, look()
                    if show:
                        show(latest, before)
                if ticked:
                    reaction.keep(session.judge.tally)
                    session.recorder.commit(stored=reaction.stored)
                    supervisor.alive(_in_a_line(latest))
                if asked.reload.taken():
                    supervisor.reloading()
                    _reload(session, asked.configuration)
                    access.reread()
                    supervisor.ready(_in_a_line(latest))
        supervisor.stopping()
        session.stop()
        look(ended=True)
        supervisor.forget()
    log.info("gate closed, detached%s", f" on signal {asked.stop.asked}" if asked.stop.asked else "")


def _take_back(config: Config, supervisor: Supervisor) -> None:
    """What the last run left when it died, if systemd kept it: before anything begins anew."""
    if kept := taken_back():
        keep_from_systemd(config, kept)
        supervisor.forget()


def _reload(session: Session, configuration: Callable[[], Config]) -> None:
    """A wrong configuration changes nothing: a daemon that runs is worth more than one that was right about its file."""
    try:
        stay = session.change(configuration())
    except RmapdError as error:
        log.error("the configuration stays as it was: %s", error)
        return
    now = ", ".join(f"{name} {getattr(session.config, name):g}" for name in CHANGEABLE)
    log.info("configuration read again: %s%s", now, f"; a restart is needed for {', '.join(stay)}" if stay else "")


def _in_a_line(s: Snapshot) -> str:
    """For `systemctl status`."""
    covered = sum(level is not Coverage.NONE for level, _ in s.coverage.values())
    found = f"{s.total(Verdict.VIOLATED)} violated, {s.total(Verdict.SUSPECT)} suspect of {sum(s.checks.values())} checks"
    return f"gate open on {s.kernel}, {covered} of {len(s.coverage)} invariants covered; {found}"


def _announce(session: Session, snapshot: Snapshot, where: str) -> None:
    for hook in snapshot.hooks:
        if hook.state in (State.MISSING, State.DENIED):
            log.warning("hook %s is %s: %s", hook.hook.name, hook.state, hook.reason)
    if snapshot.oracle_reason:
        log.warning("the page-table oracle is not calibrated (%s): suspects stay suspects", snapshot.oracle_reason)
    covered = {level: [n for n, (found, _) in snapshot.coverage.items() if found == level] for level in ("full", "partial", "none")}
    log.info("coverage: %s", "; ".join(f"{level} {' '.join(names)}" for level, names in covered.items() if names))
    log.info("gate open on %s, fidelity %s, %s/metrics", snapshot.kernel, snapshot.fidelity, where)


@contextlib.contextmanager
def _status(where: str) -> Iterator[Callable[[Snapshot, Snapshot], None]]:
    """A table that redraws itself; only on a terminal."""
    from rich.live import Live

    from tracer.status import table

    with Live(auto_refresh=False) as live:
        yield lambda now, before: live.update(table(now, before, where), refresh=True)
