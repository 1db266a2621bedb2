"""`rmapd run` without systemd: a process that outlives the checker and passes signals on to it.

When the checker dies it stores what the checker left, and exits with 71, or with the status the
checker exited with. Under systemd (NOTIFY_SOCKET) there is no supervisor: systemd keeps the maps
and starts rmapd again (sd_notify.py, crash_recovery.py).
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Collection

from tracer.config import Config
from tracer.process import allocator
from tracer.supervision import supervisor
from tracer.supervision.checkpoint import CheckpointMemory, read
from tracer.supervision.command import CHECKER_DIED

log = logging.getLogger("rmapd")

_WAIT_SECONDS = 1.0
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def start(config: Config) -> supervisor.Supervised | int:
    """Fork the checker, which gets a Supervised; the supervisor gets the exit code at the end.

    In the checker SIGNALS are blocked until it handles them: one that arrives earlier is not lost.
    """
    allocator.return_large_blocks()
    memory = CheckpointMemory.for_rows(config.maps.ledger_rows + config.maps.frozen_rows)
    if os.environ.get("NOTIFY_SOCKET"):
        return supervisor.Supervised(memory, os.getpid())
    owner = os.getpid()
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    channel, checker = supervisor.fork_checker(memory, config.hang_seconds)
    if checker is None:
        return supervisor.Supervised(memory, owner, channel)
    return _until_the_end(config, checker)


def _until_the_end(config: Config, checker: supervisor.CheckerProcess) -> int:
    signals = supervisor.Signals(*SIGNALS)
    checker.keep_open(signals.descriptors)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    while True:
        checker.wait([signals.wake_fd], _WAIT_SECONDS)
        death = checker.death()
        for kind, value in checker.channel.received():
            checker.finishing |= kind == "done"
            if kind == "dropped":
                _drop_privileges(*value)
                checker.channel.send("dropped")
        for number in signals.take():
            checker.signal(number)
        if death and checker.finishing and death.exit_status is not None:
            return death.exit_status
        if death:
            return _after_death(config, checker, death)


def _after_death(
    config: Config, checker: supervisor.CheckerProcess, death: supervisor.Death
) -> int:
    def work() -> int:
        from tracer.daemon.crash_recovery import store_after_death

        return store_after_death(config, checker.memory, reason)

    reason = death.as_json()["reason"]
    log.error("%s", reason)
    if not checker.detach():
        log.error("detaching takes long: it goes on until rmapd has ended")
    if read(checker.memory).state.attached:
        try:
            status = checker.run_limited(work, lambda: False)
            how = "took too long" if status is None else f"ended with {status}"
        except OSError as error:
            status, how = None, f"could not start: {error.strerror}"
        if status != 0:
            log.error("results that are not stored are lost: the process that stores them %s", how)
    code = CHECKER_DIED if death.exit_status is None else death.exit_status
    checker.close_all_and_exit(code)
    return code


def _drop_privileges(kept: Collection[int], user: tuple[str, int, int] | None) -> None:
    """Drop what the checker dropped: the work after its death needs no more than the checker did.

    The store belongs to the checker's user, too.
    """
    from pyprctl import Cap

    from tracer.process import privileges, seccomp, users

    privileges.become(users.User(*user) if user else None, frozenset(map(Cap, kept)))
    seccomp.install_filter()
