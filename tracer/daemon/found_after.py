"""What a dead `rmapd run` has left: judged, stored as found after a crash, and logged. By its supervisor, or by the next start."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Collection

from tracer.bpf.syscall import object_name
from tracer.config import Config
from tracer.daemon.after_death import Aftermath, aftermath
from tracer.errors import RmapdError
from tracer.invariants.verdict import Verdict
from tracer.outputs.log import FindingLog
from tracer.outputs.otlp import Sender
from tracer.outputs.sinks import Sinks, open_store
from tracer.process import children
from tracer.supervision.checkpoint import Memory

log = logging.getLogger("rmapd")

_MOST_SECONDS = 120.0
_KEPT = "systemd kept it for this start"


def keep(config: Config, memory: Memory, how: str) -> int:
    """By the supervisor, which has all that the judge had. how: it died."""
    return _keep(config, aftermath(config, memory), how)


def keep_from_systemd(config: Config, descriptors: Collection[int]) -> None:
    """By the next start, in a process of its own, which what is read may kill: the memory is the one that is neither map nor program."""
    names = {fd: object_name(fd) for fd in descriptors}
    memory = next(
        (
            fd
            for fd, name in names.items()
            if not name and os.readlink(f"/proc/self/fd/{fd}").startswith("/memfd:")
        ),
        -1,
    )

    def work() -> int:
        try:
            return _keep(
                config,
                aftermath(config, Memory(fd=memory), {name: fd for fd, name in names.items()}),
                _KEPT,
            )
        except RmapdError as error:
            log.error("what the last run has left is lost: %s", error)
            return 0

    if memory >= 0:
        done = children.limited(work, min(_MOST_SECONDS, config.hang_seconds), sharing=False)
        if done != 0:
            log.error(
                "what the last run has left is lost: who judged it %s",
                "took too long" if done is None else f"ended with {done}",
            )
    for fd in descriptors:
        os.close(fd)


def _keep(config: Config, session: Aftermath, how: str) -> int:
    state, why = session.left.state, f"found after a crash: {how}"
    with session:
        session.stop()
        snapshot, tally, new = (
            session.snapshot(),
            session.judge.tally,
            session.judge.take_new_findings(),
        )
        for finding in new:
            finding.evidence["found"] = why
        store = open_store(
            config, session.kernel.release, run=state.run, counted=state.stored, rest=state.rest
        )
        with contextlib.closing(Sinks(store, FindingLog(time.time), Sender(None))) as reaction:
            reaction.deliver(tally, new, snapshot, ended=True, early=why)
    bad = f"{snapshot.total(Verdict.VIOLATED)} violated, {snapshot.total(Verdict.SUSPECT)} suspect"
    log.error(
        "%s: %s of %d checks; %d entries are outstanding",
        why,
        bad,
        sum(snapshot.checks.values()),
        snapshot.outstanding,
    )
    return 0
