"""Go on with the maps of a dead checker, in another process, from the state that it was in.

The maps, and the programs that run on demand, are open there; nothing is attached any more.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import msgspec

from tracer.attach.attach_process import AttachOutcome, taken_over
from tracer.config import Config
from tracer.daemon import probes as probes_module
from tracer.daemon.recorder import Recorder, resume
from tracer.daemon.session import Session
from tracer.errors import RmapdError
from tracer.supervision import takeover
from tracer.supervision.checkpoint import CheckpointMemory, Recovered, read
from tracer.supervision.takeover import TakeoverRecord
from tracer.tables.c_structs import Layout


@dataclass(frozen=True)
class Remains:
    """What a dead checker left: the takeover record for this process, and the log."""

    takeover: TakeoverRecord
    log: Recovered


def put_back(layout: Layout, before: bytes, now: bytes) -> bytes:
    """Merge a ledger row that was taken out with the row that is there now; return the result.

    The kernel starts a new row for what it inserts after the old one was taken out. It is the same
    row where the checker died before it took the row out.
    """
    was, later = layout.unpack(before), layout.unpack(now)
    if was.first_ns == later.first_ns:
        return now
    return layout.pack(**vars(later) | {"first_ns": was.first_ns, "count": was.count + later.count})


def find_remains(memory: CheckpointMemory, descriptors: Mapping[str, int] | None = None) -> Remains:
    """Read the memory of a dead checker.

    descriptors: of its maps and programs by name, where this process has other numbers. Raises
    RmapdError where nothing was attached, or something is missing.
    """
    try:
        log = read(memory)
        if not log.state.attached:
            raise RmapdError("the checker had attached nothing yet")
        record = takeover.decode(log.state.attached)
        if descriptors is not None:
            record = takeover.with_descriptors(record, descriptors)
        return Remains(record, log)
    except (msgspec.DecodeError, KeyError) as error:
        raise RmapdError(
            "cannot read what a dead checker left", why=f"{type(error).__name__}: {error}"
        ) from error


@contextlib.contextmanager
def reopen_session(config: Config, remains: Remains) -> Iterator[Session]:
    """Yield a session in the state of the dead checker; stop() checks what its maps still have."""
    record, log = remains.takeover, remains.log
    answer, recorder = record.answer, Recorder(None)
    layouts = probes_module.read_layouts(probes_module.probes_folder())
    attached = AttachOutcome(taken_over(answer, record.fds), answer.page_size, answer.enums)
    level, kernel = log.state.level or record.level, probes_module.running_kernel()
    with probes_module.opened(attached, kernel, layouts, level, recorder) as probes:
        for point in probes.loaded.points.get("tasks", []):
            point.link = point.link or point.program.attach("iter", "")
        session = Session(
            config,
            probes,
            recorder,
            oracle_reason=record.oracle_reason,
            started_ns=record.started_ns,
        )
        session.close_gate()
        for name, key, value in log.rows:
            table = probes.loaded.maps[name]
            now = None if name == "frozen" else table.lookup(key)
            ledger_row = layouts.structs["ledger_row"]
            table.update(key, put_back(ledger_row, value, now) if now else value)
        resume(log, session.checker, session.protocol_events.rulings)
        session.checker.read_events(
            [event for at, event in log.events if at < probes.ring.position]
        )
        yield session
