"""A running daemon as JSON: its status on one screen, and what is hot now.

The parts that a report has as well have the same keys (json_form.py).
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from typing import Any

import tracer
from tracer.protocol.model import Lock
from tracer.results import json_form
from tracer.results.history import RATE_SECONDS, HistoryPoint, per_second
from tracer.results.snapshot import Snapshot
from tracer.results.standing import Standing
from tracer.tables.histogram import Histogram

_LEVELS = {1: "PTE", 2: "PMD"}
_EVERYWHERE, _IN_WINDOWS = "everywhere", "windows"
_NONE = Histogram()


def index_json(s: Snapshot, stands: Standing) -> dict[str, Any]:
    """Return the version, the kernel and the state of the daemon."""
    taken = datetime.datetime.fromtimestamp(s.taken_seconds, datetime.UTC).isoformat(
        timespec="milliseconds"
    )
    return {
        "rmapd": tracer.__version__,
        "run": s.run,
        "kernel": s.kernel,
        "fidelity": s.fidelity,
        "gate_open": s.gate_open,
        "standing": stands.as_json(),
        "duration_seconds": round(s.running_seconds, 3),
        "taken": taken.replace("+00:00", "Z"),
    }


def status_json(s: Snapshot, stands: Standing, points: Sequence[HistoryPoint]) -> dict[str, Any]:
    """Return the state of the daemon on one screen. points: history."""
    return index_json(s, stands) | {
        "host": s.host,
        "required": list(s.required),
        "fidelity_changes": dict(s.fidelity_changes),
        "invariants": json_form.invariants_json(s),
        "findings": [json_form.finding_json(v) for v in s.violations.values()],
        "beyond": json_form.beyond_json(s),
        "lost": s.lost,
        "migration": json_form.migration_json(s),
        "oracle": {"ready": not s.oracle_reason, "reason": s.oracle_reason},
        "audit": s.audit.as_json(),
        "store": None
        if s.store is None
        else {"path": s.store.path, "reason": s.store.reason, "unwritten": s.store.unwritten},
        "overhead": {
            "probe_seconds": round(sum(one.seconds for one in s.statistics.values()), 6),
            "user_seconds": round(s.user_seconds, 3),
            "probe_share": _share(per_second(points, RATE_SECONDS, lambda p: p.probe_seconds)),
            "user_share": _share(per_second(points, RATE_SECONDS, lambda p: p.user_seconds)),
            "rss_bytes": s.peak_rss_bytes,
            "longest_tick_gap_seconds": round(s.longest_tick_gap_seconds, 3),
            "cpus": s.cpus,
        },
    }


def _share(of_a_cpu: float | None) -> float | None:
    return None if of_a_cpu is None else round(of_a_cpu, 6)


def functions_json(s: Snapshot) -> list[dict[str, Any]]:
    """Return the functions with windows, those that took the most time first.

    windows: recorded. unsampled: windows that were only counted.
    """
    rows = [
        {"function": name, "unsampled": s.windows_unsampled.get(name, 0)} | _times(times)
        for name, times in s.window_times.items()
        if times.count or s.windows_unsampled.get(name)
    ]
    return sorted(rows, key=lambda row: -row["seconds"])


def locks_json(s: Snapshot) -> list[dict[str, Any]]:
    """Return the lock classes that were waited for or held, the longest wait first.

    mmap_lock is counted everywhere and by mode, the other classes inside of windows.
    """
    rows = [
        _lock(
            Lock.MMAP,
            mode.lower(),
            _EVERYWHERE,
            s.histograms.get(f"HIST_MMAP_WAIT_{mode}", _NONE),
            s.histograms.get(f"HIST_MMAP_HOLD_{mode}", _NONE),
        )
        for mode in ("READ", "WRITE")
    ]
    for family in dict.fromkeys(lock.family for lock in Lock if lock.family is not Lock.MMAP):
        waits, holds = (
            sum(
                (one for name, one in found.items() if Lock(name).family is family),
                _NONE,
            )
            for found in (s.lock_waits, s.lock_holds)
        )
        rows.append(_lock(family, "any", _IN_WINDOWS, waits, holds))
    met = [row for row in rows if row["wait"]["count"] or row["hold"]["count"]]
    return sorted(met, key=lambda row: -row["wait"]["seconds"])


def _lock(lock: Lock, mode: str, where: str, wait: Histogram, hold: Histogram) -> dict[str, Any]:
    named = {"lock": lock.display_name, "mode": mode, "where": where}
    return named | {"wait": _times(wait), "hold": _times(hold)}


def _times(times: Histogram) -> dict[str, float]:
    """Return count, sum and bounds: half of the values are below p50_seconds, and so on."""
    return {
        "count": times.count,
        "seconds": round(times.sum_ns / 1e9, 9),
        "p50_seconds": times.edge_ns(0.5) / 1e9,
        "p99_seconds": times.edge_ns(0.99) / 1e9,
        "longest_seconds": times.edge_ns(1.0) / 1e9,
    }


def entries_json(s: Snapshot) -> list[dict[str, Any]]:
    """Return the oldest migration entries that are outstanding, the oldest first."""
    return [
        {
            "age_seconds": round(one.age_seconds, 6),
            "migration_seconds": None
            if one.migration_seconds is None
            else round(one.migration_seconds, 6),
            "tgid": one.tgid,
            "tid": one.tid,
            "addr": f"{one.addr:#x}",
            "level": _LEVELS.get(one.level, str(one.level)),
            "count": one.count,
        }
        for one in s.oldest
    ]


def rates_json(points: Sequence[HistoryPoint], since: float = -1.0) -> Mapping[str, Any]:
    """Return the counts of the last ten minutes in columns, one row every two to ten seconds.

    since: leave out points that are not later, in seconds since the gate opened. A rate is the
    difference of two counts over the difference of their `seconds`.
    """
    kept = [point for point in points if round(point.seconds, 3) > since]
    return {
        "seconds": [round(p.seconds, 3) for p in kept],
        "checks": {
            name: [p.checks[name] for p in kept] for name in (points[-1].checks if points else ())
        },
        "unverifiable": [p.unverifiable for p in kept],
        "windows": [p.windows for p in kept],
        "entries": [p.entries for p in kept],
        "outstanding": [p.outstanding for p in kept],
        "lost": [p.lost for p in kept],
        "probe_seconds": [round(p.probe_seconds, 6) for p in kept],
        "user_seconds": [round(p.user_seconds, 3) for p in kept],
    }
