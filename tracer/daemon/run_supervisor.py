"""`rmapd run` without systemd: a process that outlives the judge, keeps what it leaves, and exits with 71. Signals are passed on.

Under systemd (NOTIFY_SOCKET) there is none: systemd keeps the maps and starts rmapd again (notify.py, found_after.py)."""

from __future__ import annotations

import os
import signal
from collections.abc import Collection

from tracer.config import Config
from tracer.supervision import supervisor
from tracer.supervision.checkpoint import Memory
from tracer.supervision.command import JUDGE_DIED

_TURN_SECONDS = 1.0


def start(config: Config) -> supervisor.Supervised | int:
    """The judge's side goes on in a child; the supervisor's comes back with an exit code when it is over."""
    memory = Memory.for_rows(config.maps.ledger_rows + config.maps.frozen_rows)
    if os.environ.get("NOTIFY_SOCKET"):
        return supervisor.Supervised(memory, os.getpid())
    owner = os.getpid()
    line, watched = supervisor.fork(memory, config.hang_seconds)
    if watched is None:
        return supervisor.Supervised(memory, owner, line)
    return _until_the_end(config, watched)


def _until_the_end(config: Config, watched: supervisor.Watched) -> int:
    signals = supervisor.Signals(signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    while True:
        watched.wait([signals.woken], _TURN_SECONDS)
        death = watched.death()
        for kind, what in watched.line.heard():
            watched.finishing |= kind == "done"
            if kind == "dropped":
                _drop(*what)
        for number in signals.taken():
            watched.signal(number)
        if death and watched.finishing and death.exit_status is not None:
            return death.exit_status
        if death:
            return _after(config, watched, death)


def _after(config: Config, watched: supervisor.Watched, death: supervisor.Death) -> int:
    def work() -> int:
        from tracer.daemon.found_after import keep

        return keep(config, watched.memory, death.as_json()["reason"])

    watched.detach()
    watched.afterwards(work, lambda: False)
    code = JUDGE_DIED if death.exit_status is None else death.exit_status
    watched.let_go(code)
    return code


def _drop(kept: Collection[int], who: tuple[str, int, int] | None) -> None:
    """As the judge did, and kept: what is judged after its death needs no more than it did, and its store is of its user."""
    from pyprctl import Cap

    from tracer.process import privileges, seccomp

    privileges.become(privileges.User(*who) if who else None, frozenset(map(Cap, kept)))
    seccomp.forbid()
