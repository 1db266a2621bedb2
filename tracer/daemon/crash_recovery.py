"""After `rmapd run` has died: check what it left, store it as found after a crash, and log it.

The supervisor does that, or the next start under systemd.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Collection

from tracer.bpf.syscall import object_name
from tracer.config import Config
from tracer.daemon.after_death import Remains, find_remains, reopen_session
from tracer.daemon.snapshots import build_snapshot
from tracer.errors import RmapdError
from tracer.invariants.verdict import Verdict
from tracer.outputs.log import FindingLog
from tracer.outputs.otlp import Sender
from tracer.outputs.sinks import Sinks, open_store
from tracer.process import children
from tracer.supervision.checkpoint import CheckpointMemory

log = logging.getLogger("rmapd")

_MAX_SECONDS = 120.0
_KEPT = "systemd kept it for this start"


def store_after_death(config: Config, memory: CheckpointMemory, death: str) -> int:
    """Store what a dead checker left; the caller is its supervisor and has all its descriptors.

    death is the reason. Returns the exit status 0.
    """
    return _store(config, find_remains(memory), death)


def store_from_systemd(config: Config, descriptors: Collection[int]) -> None:
    """Store what the last run left in systemd's descriptor store; close the descriptors.

    A child does the work, because what it reads may kill it. The memory is the descriptor that is
    neither a map nor a program.
    """
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
            by_name = {name: fd for fd, name in names.items()}
            return _store(config, find_remains(CheckpointMemory(fd=memory), by_name), _KEPT)
        except RmapdError as error:
            log.error("results of the last run are lost: %s", error)
            return 0

    if memory >= 0:
        status = children.run_limited(work, min(_MAX_SECONDS, config.hang_seconds), sharing=False)
        if status != 0:
            log.error(
                "results of the last run are lost: the process that read them %s",
                "took too long" if status is None else f"ended with {status}",
            )
    for fd in descriptors:
        os.close(fd)


def _store(config: Config, remains: Remains, how: str) -> int:
    state, why = remains.log.state, f"found after a crash: {how}"
    with reopen_session(config, remains) as session:
        session.stop()
        snapshot, new = build_snapshot(session), session.checker.take_new_findings()
        for finding in new:
            finding.evidence["found"] = why
        store = None
        try:
            store = open_store(
                config, snapshot.kernel, run=state.run, counted=state.stored, rest=state.rest
            )
        except RmapdError as error:
            log.error("what the last run left goes to the log only: %s", error.in_a_line)
        with contextlib.closing(Sinks(store, FindingLog(time.time), Sender(None))) as sinks:
            sinks.deliver(session.checker.tally, new, snapshot, ended=True, early=why)
    bad = f"{snapshot.total(Verdict.VIOLATED)} violated, {snapshot.total(Verdict.SUSPECT)} suspect"
    log.error(
        "%s: %s of %d checks; %d entries are outstanding",
        why,
        bad,
        sum(snapshot.checks.values()),
        snapshot.outstanding,
    )
    return 0
