"""The report of a run: the JSON of the command-line contract, and the text for a terminal."""

from __future__ import annotations

import datetime
import json
from collections.abc import Sequence
from typing import Any

import tracer
from tracer.facts import standing
from tracer.histogram import Histogram
from tracer.monitors.lock_order import classes
from tracer.notation import parts, text
from tracer.plan import State
from tracer.printable import printable
from tracer.rulings import Ruled
from tracer.snapshot import Snapshot
from tracer.standing import Standing, entries
from tracer.verdict import Verdict, Violation


def as_json(
    s: Snapshot, argv: Sequence[str], exit_code: int, stands: Standing | None = None
) -> dict[str, Any]:
    """The report as the contract names its keys. stands: how it stands, where more is known of that than the snapshot says."""
    return {
        "rmapd": tracer.__version__,
        "kernel": s.kernel,
        "started": iso(s.taken_seconds - s.running_seconds),
        "ended": iso(s.taken_seconds),
        "fidelity": s.fidelity,
        "fidelity_changes": dict(s.fidelity_changes),
        "gate_open": s.gate_open,
        "standing": (stands or standing(s)).as_json(),
        "required": list(s.required),
        **({"ended_early": {"reason": s.ended_early}} if s.ended_early else {}),
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
        "invariants": {
            name: {
                "title": invariant.title,
                "coverage": s.coverage[name][0].value,
                "reason": s.coverage[name][1],
                "checks": {verdict.value: s.checked(name, verdict) for verdict in Verdict},
            }
            for name, invariant in s.invariants.items()
        },
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
        "beyond": {
            f"{invariant} {verdict}": count for (invariant, verdict), count in s.rest.items()
        },
        "histograms": _histograms(s),
        "lock_graph": _lock_graph(s),
        "lost": s.lost,
        "migration": {name.lower(): s.counters[name] for name in _LEDGER if name in s.counters}
        | {f"entries_{name}": count for name, count in s.decided.items()}
        | _outstanding(s),
        "oracle": {"ready": not s.oracle_reason, "reason": s.oracle_reason, **s.oracle},
        "overhead": {
            "hooks": {
                name: {"runs": st.runs, "seconds": round(st.seconds, 9), "missed": st.missed}
                for name, st in s.statistics.items()
            },
            "user_seconds": round(s.user_seconds, 3),
            "rss_bytes": s.peak_rss_bytes,
        },
    }


_LEDGER = (
    "ENTRIES_BOOKED",
    "ENTRIES_COPIED",
    "ENTRIES_REMOVED",
    "REMOVALS_UNBOOKED",
    "MIGRATIONS_ENDED",
    "MIGRATIONS_UNENDED",
    "FORKS_SEEN",
    "MMS_EXITED",
)


def _outstanding(s: Snapshot) -> dict[str, float]:
    """Entries that were recorded and neither removed nor judged."""
    age = {
        "oldest_entry_seconds": round(s.oldest_entry_seconds, 3),
        "age_limit_seconds": s.age_limit_seconds,
    }
    return {"outstanding": s.outstanding, **age}


def _histograms(s: Snapshot) -> list[dict[str, Any]]:
    """What the kernel counted in histograms, of those that counted anything. Lock classes other than mmap_lock inside of windows only."""
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
    """counts[n] are the values below bounds[n] and not below the bound before; in seconds, or in VMAs (below 2 is 1)."""
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
    """Which class was waited for while which was held, inside of windows; mmap_nestings: two mmap_locks, of all tasks."""
    met = {node for one in s.lock_graph for node in (one.held, one.taken)}
    return {
        "classes": [
            {"class": name, "name": spoken, "rank": rank}
            for name, (spoken, rank) in classes().items()
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


def protocol_json(ruled: Ruled) -> dict[str, Any]:
    """One protocol of the table; `text` is what tests and people read and type."""
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


def violation_json(v: Violation) -> dict[str, Any]:
    """One violation or suspect signature."""
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
        "protocol": f.protocol,
        "stack": list(f.stack),
        "evidence": f.evidence,
        "trail": [dict(step) for step in f.trail],
        "machine": dict(v.machine),
    }


def iso(seconds: float) -> str:
    """A moment as reports and the store write it."""
    return (
        datetime.datetime.fromtimestamp(seconds, datetime.UTC)
        .isoformat(timespec="microseconds")
        .replace("+00:00", "Z")
    )


def as_text(s: Snapshot, argv: Sequence[str], exit_code: int) -> str:
    """A summary for people."""
    lines = [
        f"rmapd {tracer.__version__} on {s.kernel}, {s.running_seconds:.1f} s: {' '.join(argv)} (exit {exit_code})",
        "",
    ]
    lines += [*standing(s).lines(), ""]
    lines.append(
        f"{'':4} {'coverage':8} {'holds':>10} {'violated':>9} {'suspect':>8} {'unverifiable':>13}"
    )
    for name in s.invariants:
        if sum(s.checked(name, verdict) for verdict in Verdict) or s.coverage[name][0] != "none":
            h, v, u, x = (s.checked(name, verdict) for verdict in Verdict)
            lines.append(f"{name:4} {s.coverage[name][0]:8} {h:10,} {v:9,} {u:8,} {x:13,}")
    none = [name for name in s.invariants if s.coverage[name][0] == "none"]
    lines.append(f"not checked: {', '.join(none) or 'none'} (rmapd doctor says why)")
    lines += _windows_text(s)
    if s.rest:
        lines += [
            "",
            f"{sum(s.rest.values()):,} findings of further signatures, beyond the {len(s.violations):,} that are kept with evidence",
        ]
    lines += ["", "lost: " + ", ".join(f"{book} {count}" for book, count in s.lost.items())]
    oldest = f", the oldest for {s.oldest_entry_seconds:.3g} s" if s.outstanding else ""
    lines.append(
        f"outstanding: {entries(s.outstanding)} recorded, and neither removed nor judged{oldest}"
    )
    lines.append(
        f"oracle: {s.oracle.get('asked', 0)} addresses asked, {s.oracle.get('sweeps', 0)} sweeps, {s.oracle.get('cleared', 0)} cleared"
    )
    absent = [
        f"{h.hook.name} {h.state} ({h.reason})"
        for h in s.hooks
        if h.state in (State.MISSING, State.DENIED)
    ]
    lines += [f"hook: {line}" for line in absent]
    for violation in s.violations.values():
        lines += ["", *violation_text(violation)]
    return "\n".join(map(printable, lines)) + "\n"


def _windows_text(s: Snapshot) -> list[str]:
    """Windows by function, each with its protocols and how often each ran."""
    lines, unsampled = [""], sum(s.windows_unsampled.values())
    if unsampled:
        lines.append(f"{unsampled:10,} windows were not booked: windows were sampled")
    for name, histogram in s.window_times.items():
        ruled = sorted(
            (one for one in s.protocols if one.protocol.window == name),
            key=lambda one: -one.windows,
        )
        if histogram.count:
            lines.append(f"{histogram.count:10,} {name}")
            lines += [f"{one.windows:16,}  {text(one.protocol)}" for one in ruled]
    outside = [one for one in s.protocols if one.protocol.window == "outside"]
    lines += [f"{one.windows:10,} {text(one.protocol)}" for one in outside]
    return lines if lines[1:] else []


def violation_text(v: Violation) -> list[str]:
    """A violation as a few lines; names in them are printable."""
    f = v.first
    lines = [
        f"{f.verdict.upper()} {f.invariant} ×{v.count} [{f.id}] {f.function}: {f.summary}",
        f"    {f.signature}",
    ]
    if f.task:
        lines.append(f"    task {f.task.get('comm')}[{f.task.get('pid')}]")
    lines += [f"    {line}" for line in f.stack]
    return list(map(printable, [*lines, f"    evidence: {json.dumps(f.evidence)}"]))
