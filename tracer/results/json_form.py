"""The report of a run as JSON: the keys of the command-line contract."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import Any

import tracer
from tracer.invariants.lock_order import classes
from tracer.invariants.verdict import Verdict, Violation
from tracer.packed import unpack
from tracer.protocol.text import parts, text
from tracer.results.checks import FIRST_WALKS
from tracer.results.coverage_reasons import coverage_reasons
from tracer.results.protocols import ProtocolVerdict
from tracer.results.snapshot import Snapshot
from tracer.results.standing import Standing
from tracer.results.standing_facts import standing
from tracer.tables.histogram import Histogram


def as_json(
    s: Snapshot, argv: Sequence[str], exit_code: int, stands: Standing | None = None
) -> dict[str, Any]:
    """Return the report with the keys of the contract.

    exit_code: of the command. stands: how the run stands, where more is known of that than the
    snapshot contains.
    """
    return {
        "rmapd": tracer.__version__,
        "host": s.host,
        "kernel": s.kernel,
        "started": iso(s.began),
        "ended": iso(s.taken_seconds),
        "fidelity": s.fidelity,
        "fidelity_changes": dict(s.fidelity_changes),
        "gate_open": s.gate_open,
        "standing": (stands or standing(s)).as_json(),
        "required": list(s.required),
        **({"ended_early": {"reason": s.ended_early}} if s.ended_early else {}),
        **({"undecided": s.undecided} if s.undecided else {}),
        "duration_seconds": round(s.running_seconds, 3),
        "command": {"argv": list(argv), "exit_code": exit_code},
        "hooks": {
            h.hook.name: {
                "state": h.state.value,
                "how": h.how,
                "symbol": h.symbol,
                "reason": h.reason,
            }
            for h in s.hooks
        },
        "invariants": invariants_json(s),
        "windows": {
            name: histogram.count for name, histogram in s.window_times.items() if histogram.count
        },
        "windows_unsampled": {name: count for name, count in s.windows_unsampled.items() if count},
        "protocols": [
            protocol_json(ruled)
            for ruled in sorted(
                s.protocols, key=lambda ruled: (ruled.protocol.window, -ruled.windows)
            )
        ],
        "violations": [violation_json(v) for v in s.violations.values()],
        "beyond": beyond_json(s),
        "histograms": _histograms(s),
        "lock_graph": _lock_graph(s),
        "lost": s.lost,
        "migration": migration_json(s),
        "oracle": {"ready": not s.oracle_reason, "reason": s.oracle_reason, **s.oracle},
        "audit": s.audit.as_json(),
        "overhead": {
            "hooks": {
                name: {"runs": st.runs, "seconds": round(st.seconds, 9), "missed": st.missed}
                for name, st in s.statistics.items()
            },
            "measured_seconds": round(s.statistics_seconds, 3),
            "user_seconds": round(s.user_seconds, 3),
            "rss_bytes": s.peak_rss_bytes,
            "longest_tick_gap_seconds": round(s.longest_tick_gap_seconds, 3),
        },
    }


_LEDGER = (
    "ENTRIES_RECORDED",
    "ENTRIES_COPIED",
    "ENTRIES_REMOVED",
    "REMOVALS_UNRECORDED",
    "MIGRATIONS_ENDED",
    "MIGRATIONS_UNENDED",
    "FORKS_SEEN",
    "MMS_EXITED",
)


def invariants_json(s: Snapshot) -> dict[str, Any]:
    """Return each invariant with its coverage and its checks by verdict."""
    reasons = coverage_reasons(s)
    return {
        name: {
            "title": invariant.title,
            "coverage": s.coverage[name][0].value,
            "reason": reasons[name],
            "checks": {verdict.value: s.checked(name, verdict) for verdict in Verdict},
        }
        for name, invariant in s.invariants.items()
    }


def beyond_json(s: Snapshot) -> dict[str, int]:
    """Return the findings beyond the bound on signatures, by invariant and verdict."""
    return {f"{invariant} {verdict}": count for (invariant, verdict), count in s.rest.items()}


def migration_json(s: Snapshot) -> dict[str, float]:
    """Return the migration entries by event, and what first rmap walks left."""
    ledger = {name.lower(): s.counters[name] for name in _LEDGER if name in s.counters}
    decided = {f"entries_{name}": count for name, count in s.decided.items()}
    walks = {
        f"first_walks_{kind}": s.counters.get(f"FIRST_WALKS_{kind.upper()}", 0)
        for kind in FIRST_WALKS
    }
    return ledger | decided | _outstanding(s) | walks


def _outstanding(s: Snapshot) -> dict[str, float]:
    """Return the entries that were recorded and neither removed nor judged."""
    age = {
        "oldest_entry_seconds": round(s.oldest_entry_seconds, 3),
        "age_limit_seconds": s.age_limit_seconds,
    }
    return {"outstanding": s.outstanding, **age}


def _histograms(s: Snapshot) -> list[dict[str, Any]]:
    """Return the probes' histograms that are not empty.

    Lock classes other than mmap_lock are counted inside of windows only.
    """
    found: list[tuple[str, dict[str, str], Histogram | None]] = [
        ("migration_entry_seconds", {}, s.histograms.get("HIST_MIGRATION_ENTRY"))
    ]
    for what, inside in (("wait", s.lock_waits), ("hold", s.lock_holds)):
        for mode in ("read", "write"):
            labels = {"class": "mmap", "mode": mode}
            found.append(
                (
                    f"lock_{what}_seconds",
                    labels,
                    s.histograms.get(f"HIST_MMAP_{what.upper()}_{mode.upper()}"),
                )
            )
        found += [
            (f"lock_{what}_seconds", {"class": name}, one)
            for name, one in inside.items()
            if not name.startswith("mmap")
        ]
    found += [("window_seconds", {"function": name}, one) for name, one in s.window_times.items()]
    found += [
        ("rmap_walk_vmas", {"kind": kind}, s.histograms.get(f"HIST_WALK_{kind.upper()}"))
        for kind in ("anon", "file", "ksm")
    ]
    return [
        {"name": name, "labels": labels} | histogram_json(one, name)
        for name, labels, one in found
        if one and one.count
    ]


def histogram_json(histogram: Histogram, name: str) -> dict[str, Any]:
    """Return a histogram: counts[n] are the values below bounds[n] and not below the bound before.

    Bounds are in seconds, or in VMAs (below 2 is 1).
    """
    used = [n for n, count in enumerate(histogram.slots) if count]
    scale = 1e9 if name.endswith("_seconds") else 1
    first, last = used[0], used[-1]
    bounds = [2**n / scale for n in range(first, last + 1)]
    return {
        "bounds": bounds,
        "counts": list(histogram.slots[first : last + 1]),
        "sum": histogram.sum_ns / scale,
        "count": histogram.count,
    }


def _lock_graph(s: Snapshot) -> dict[str, Any]:
    """Return which class was waited for while which was held, inside of windows.

    mmap_nestings: two mmap_locks, of all tasks.
    """
    met = {node for one in s.lock_graph for node in (one.held, one.taken)}
    return {
        "classes": [
            {"class": name, "name": display_name, "rank": rank}
            for name, (display_name, rank) in classes().items()
            if name in met
        ],
        "edges": [
            {
                "held": one.held,
                "taken": one.taken,
                "modes": dict(one.modes),
                "functions": dict(one.functions),
                "in_cycle": one.cycle,
                "protocol": text(one.first),
                "stack": list(one.stack),
            }
            for one in s.lock_graph
        ],
        "mmap_nestings": s.counters.get("NESTED_HOLDS", 0),
    }


def protocol_json(ruled: ProtocolVerdict) -> dict[str, Any]:
    """Return one protocol of the table. `text` is the form that tests and people read and type."""
    head, body = parts(ruled.protocol)
    return {
        "function": ruled.protocol.window,
        "context": head,
        "steps": body,
        "text": text(ruled.protocol),
        "ascii": text(ruled.protocol, ascii=True),
        "count": ruled.windows,
        "violates": ruled.by_verdict(Verdict.VIOLATED),
        "suspect": ruled.by_verdict(Verdict.SUSPECT),
        "unverifiable": ruled.by_verdict(Verdict.UNVERIFIABLE),
    }


def finding_json(v: Violation) -> dict[str, Any]:
    """Return one signature of a violation or suspect, without what led to it."""
    f = v.first
    return {
        "id": f.id,
        "invariant": f.invariant,
        "verdict": f.verdict.value,
        "function": f.function,
        "signature": f.signature,
        "count": v.count,
        "first_seen": iso(v.first_seen),
        "last_seen": iso(v.last_seen),
        "summary": f.summary,
        "task": f.task,
    }


def violation_json(v: Violation) -> dict[str, Any]:
    """Return one signature of a violation or suspect, with its evidence."""
    f = v.first
    return finding_json(v) | {
        "protocol": f.protocol,
        "stack": list(f.stack),
        "evidence": f.evidence,
        "trail": [dict(step) for step in unpack(f.trail)],
        "machine": dict(v.machine),
    }


def iso(seconds: float) -> str:
    """Return a time as reports and the store write it. seconds: since the epoch."""
    return (
        datetime.datetime.fromtimestamp(seconds, datetime.UTC)
        .isoformat(timespec="microseconds")
        .replace("+00:00", "Z")
    )
