"""Build the immutable snapshot of a session, and the totals for a timeline.

Both only read: they count nothing and find nothing. Call catch_up() first to have all in them that
the probes have recorded.
"""

from __future__ import annotations

import heapq
import os
import resource
import socket
import time
from collections.abc import Mapping, Sequence

from tracer.bpf.programs import RunStatistics
from tracer.daemon import required
from tracer.daemon.session import Session
from tracer.invariants.verdict import Verdict
from tracer.results.checks import all_checks
from tracer.results.snapshot import OldEntry, Snapshot
from tracer.tables.ledger import Row

_OLDEST = 20
"""How many of the outstanding migration entries a snapshot names."""


def catch_up(session: Session) -> list[Row]:
    """Check all that is recorded until now; return the rows of the ledger.

    This may add findings. After the session has stopped there is nothing left to do.
    """
    if session.stopped:
        return []
    return session.checker.catch_up().rows


def caught_up(session: Session) -> Snapshot:
    """Check all that is recorded until now, and build the snapshot."""
    rows = catch_up(session)
    return build_snapshot(session, rows)


def build_snapshot(session: Session, rows: Sequence[Row] = ()) -> Snapshot:
    """Read everything once. rows: of the ledger, as catch_up() returned them."""
    tables, loaded, checker = session.probes.tables, session.probes.loaded, session.checker
    rulings, open_cases = session.protocol_events.rulings, checker.open_cases
    now_ns, usage = session.clock(), resource.getrusage(resource.RUSAGE_SELF)
    counters, statistics = tables.counters.read(), session.statistics.read()
    oldest = _oldest(rows, now_ns)
    return Snapshot(
        kernel=session.probes.kernel.release,
        fidelity=session.fidelity.level,
        fidelity_changes=session.fidelity.changes,
        gate_open=not session.stopped,
        running_seconds=(now_ns - session.started_ns) / 1e9,
        hooks=tuple(loaded.hooks),
        invariants=session.invariants,
        coverage=session.coverage,
        checks=_checks(session, counters, statistics),
        violations={v.first.id: v for v in checker.tally.violations.values()},
        statistics=statistics,
        histograms=tables.histograms.read(),
        window_times=tables.window_times.windows(),
        windows_unsampled=tables.allowances.unsampled(),
        lock_waits=tables.window_times.lock_waits(),
        lock_holds=tables.window_times.lock_holds(),
        protocols=tuple(rulings.protocols()),
        lock_graph=tuple(rulings.lock_graph()),
        unreadable=rulings.windows_unreadable,
        counters=counters,
        entries=dict(checker.entries),
        outstanding=checker.outstanding(counters),
        oldest_entry_seconds=oldest[0].age_seconds if oldest else 0.0,
        oldest=oldest,
        oracle={**open_cases.answers, "sweeps": open_cases.sweeps},
        oracle_reason=session.oracle_reason,
        audit=session.audit_progress(),
        statistics_seconds=session.statistics.measured_seconds,
        user_seconds=usage.ru_utime - session.user_seconds_at_start,
        peak_rss_bytes=usage.ru_maxrss * 1024,
        longest_tick_gap_seconds=session.loop.longest_gap_ns / 1e9,
        taken_seconds=time.time(),
        cpus=os.cpu_count() or 1,
        rest=dict(checker.tally.rest),
        required=required.required(session.config, session.invariants),
        age_limit_seconds=session.config.max_entry_age_seconds,
        budget=session.config.budget,
        config_read=session.config_read,
        host=socket.gethostname(),
        run=session.recorder.run or f"{session.started_ns:016x}",
    )


def _oldest(rows: Sequence[Row], now_ns: int) -> tuple[OldEntry, ...]:
    """Return the oldest rows of the ledger, the oldest first."""
    return tuple(
        OldEntry(
            age_seconds=max(0, now_ns - row.first_ns) / 1e9,
            migration_seconds=(now_ns - row.start_ns) / 1e9 if row.start_ns else None,
            tgid=row.tgid,
            tid=row.tid,
            addr=row.addr,
            level=row.level,
            count=row.count,
        )
        for row in heapq.nsmallest(_OLDEST, rows, key=lambda row: row.first_ns)
    )


def _checks(
    session: Session, counters: Mapping[str, int], statistics: Mapping[str, RunStatistics]
) -> dict[tuple[str, Verdict], int]:
    return all_checks(
        session.invariants.values(),
        session.covered_at_start,
        session.checker.tally.checks,
        counters,
        {name: run.missed for name, run in statistics.items()},
    )


def build_totals(session: Session) -> tuple[float, dict[str, int]]:
    """Return the seconds since the session began, and counts: cheaper than a snapshot."""
    counters = session.probes.tables.counters.read()
    counted = _checks(session, counters, session.statistics.read())
    totals = {
        verdict.value: sum(count for (_, found), count in counted.items() if found is verdict)
        for verdict in Verdict
    }
    totals |= {
        "windows": session.protocol_events.rulings.windows,
        "migration_entries": counters["ENTRIES_RECORDED"] + counters["ENTRIES_COPIED"],
    }
    return (session.clock() - session.started_ns) / 1e9, totals
