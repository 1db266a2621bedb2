"""Rehearse everything that checking asks of the kernel, to find the capabilities it needs."""

from __future__ import annotations

from tracer.bpf.links import attached_to
from tracer.daemon.session import Session
from tracer.daemon.snapshots import caught_up


def rehearse(session: Session) -> tuple[object, ...]:
    """Ask the kernel for everything once, and return its answers.

    Another result with fewer capabilities means that one of them is needed. /proc/kallsyms is
    opened by the first call and kept, so a stack that is explained later has its names.
    """
    tables, loaded = session.probes.tables, session.probes.loaded
    session.open_gate()
    tables.protocol_table.counts()
    ledger = loaded.maps.get("ledger")
    taken = ledger.take(bytes(ledger.key_size)) if ledger else None  # no row has this key
    statistics = caught_up(session).statistics
    oracle, searched = session.checker.open_cases.oracle, False
    if oracle:
        first = oracle.mms()[:1]  # init's
        searched = bool(oracle.ask([(mm, 0) for mm in first])) and oracle.sweep(first).tables > 0
    if session.kernel_reports:
        session.kernel_reports.rehearse()
    audited = bool(session.audit and session.audit.looks_at_itself())
    attached = [attached_to(one.link.fd) for one in loaded.attachments()]
    return (
        taken,
        searched,
        audited,
        session.probes.kernel.shows_addresses(),
        attached,
        session.liveness.check(),
        [(name, ran.program_id) for name, ran in statistics.items()],
    )
