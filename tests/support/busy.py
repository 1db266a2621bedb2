"""Snapshots of a made-up busy host with defects, for the pages.

The protocols and their verdicts are real, names are hostile, and there are ten minutes of history.
"""

from __future__ import annotations

import functools
import math
from dataclasses import replace
from typing import Any

from tests.support.snapshots import full
from tests.unit.invariants.test_golden import LEGAL, SEED
from tracer.attach.plan import HookState
from tracer.bpf.programs import RunStatistics
from tracer.invariants.base import Coverage
from tracer.invariants.catalogue import discover
from tracer.invariants.verdict import Finding, Verdict, Violation
from tracer.packed import pack
from tracer.protocol.text import parse, text
from tracer.results.audit import AuditProgress
from tracer.results.latest import LatestSnapshot
from tracer.results.protocols import ProtocolVerdict
from tracer.results.snapshot import OldEntry, Snapshot
from tracer.tables.histogram import SLOTS, Histogram

HOSTILE = "<script>document.title='owned'</script>"
"""A possible name of a task, except that it is too long."""
_NOW = 1_767_225_600.0
NO_HOOKS = (
    "fentry programs are refused (EPERM: Operation not permitted); this kernel is built without"
    " CONFIG_KPROBES"
)


@functools.cache
def protocols() -> tuple[ProtocolVerdict, ...]:
    judges = {name: invariant.judge for name, invariant in discover().items() if invariant.judge}
    found = []
    for number, (line, _) in enumerate([*LEGAL, *SEED]):
        protocol = parse(line)
        found.append(
            ProtocolVerdict(
                protocol,
                9**7 // (number + 1) ** 3,
                {name: r for name, judge in judges.items() if (r := judge(protocol))},
            )
        )
    return tuple(found)


def violations() -> list[Violation]:
    step = {
        "time_ns": 81_000_000_000,
        "duration_ns": 12_345,
        "function": "__split_vma",
        "task": {"pid": 4711, "tgid": 4711, "comm": HOSTILE},
        "vma": {
            "vma": "0xffff888104a1c000",
            "was_start": "0x7f1000000000",
            "was_end": "0x7f1000400000",
        },
        "protocol": text(parse(LEGAL[0][0])),
        "stack": [
            "__split_vma+0x1c5",
            "vma_modify+0x13b",
            "mprotect_fixup+0x101",
            "do_mprotect_pkey+0x243",
            "__x64_sys_mprotect+0x1b",
        ],
    }
    trail = tuple(
        step | {"time_ns": 81_000_000_000 + 7_300_000 * n, "protocol": text(parse(LEGAL[n % 7][0]))}
        for n in range(5)
    )
    trail = (
        *trail[:2],
        trail[2] | {"marked": True, "why": "a boundary moved between the two walks"},
        *trail[3:],
    )
    order = Finding(
        "L1",
        Verdict.VIOLATED,
        "vma_expand",
        text(parse(SEED[2][0]), ascii=True),
        "anon_vma rwsem is taken before i_mmap_rwsem, which waits while the other is held",
        {"pid": 4711, "tgid": 4711, "comm": HOSTILE},
        (
            "vma_expand+0x8e",
            "vma_merge_new_range+0x1c2",
            "__mmap_region+0x5f4",
            "do_mmap+0x4c3",
            f"vm_mmap_pgoff+0x11d [{HOSTILE}]",
        ),
        {
            "proven": True,
            "sighted": True,
            "trail_note": "The recorder goes back 9 s.",
            "vma": step["vma"],
            "addresses": {"mm": "0xffff888103b4d400", "file": f"/tmp/{HOSTILE}"},
        },
        text(parse(SEED[2][0])),
        pack(trail),
    )
    entry = Finding(
        "M1",
        Verdict.SUSPECT,
        "migrate_pages",
        "level=PTE reason=numa_misplaced mode=MIGRATE_ASYNC",
        f"a migration entry is left behind and its page is not locked: {HOSTILE}[4711] at"
        " 0x7f1000002000",
        {"pid": 812, "tgid": 812, "comm": "kcompactd0"},
        ("migrate_pages+0x9a1", "compact_zone+0x7d5", "kcompactd+0x2f2"),
        {
            "addr": "0x7f1000002000",
            "age_seconds": None,
            "recorded": True,
            "entries": [
                {
                    "tgid": 4711,
                    "comm": HOSTILE,
                    "addr": "0x7f1000002000",
                    "entry": "0x7a00000000123456",
                    "pfn": "0x123456",
                    "locked": False,
                },
                {
                    "tgid": 4712,
                    "comm": "x",
                    "addr": "0x7f1000002000",
                    "entry": "0x7a00000000123456",
                    "pfn": "0x123456",
                    "locked": False,
                },
            ],
        },
    )
    return [Violation(order, _NOW - 500, _NOW - 20, 3), Violation(entry, _NOW - 60, _NOW - 60, 1)]


def times(count: float, peak: int) -> Histogram:
    """Return a histogram of this many times, most of them near 2**peak nanoseconds."""
    slots = [0] * SLOTS
    for n, share in zip(range(peak - 3, peak + 4), (3, 10, 22, 30, 22, 10, 3), strict=True):
        slots[n] = int(count * share / 100)
    return Histogram(tuple(slots), sum(int(one * 0.75 * 2**n) for n, one in enumerate(slots)))


def audit(seconds: float) -> AuditProgress:
    """Return the progress of an audit that has run for this time."""
    looks = int(seconds * 20)
    counted = {"mms": looks, "vmas": looks * 90, "nodes": looks * 9, "climbs": looks * 70}
    return AuditProgress(
        counted=counted | {"passes": looks // 190},
        doubts={"cleared": int(seconds / 400), "mm_gone": 2, "violated": 0, "unverifiable": 0},
        open=1,
        known_mms=190,
        oldest_seconds=8.7,
        cpu_seconds=seconds / 1000,
        budget=0.001,
    )


def oldest() -> tuple[OldEntry, ...]:
    """Return the oldest outstanding entries."""
    return tuple(
        OldEntry(0.0042 / (n + 1), 0.012, 812, 812, 0x7F1000002000 + 4096 * n, 1, 1 + n % 3)
        for n in range(12)
    )


def snapshot(seconds: float = 4000.0) -> Snapshot:
    """Return the snapshot at this time after the gate opened."""
    base, load = (
        full(),
        seconds * 900 + 40_000 * math.sin(seconds / 40) + 15_000 * math.sin(seconds / 9),
    )
    hooks = {
        name: RunStatistics(1, int(load * 3 / (n + 1)), load * 9e-7 / (n + 1), 3 * (n == 2))
        for n, name in enumerate(base.statistics)
    }
    checks = {(name, Verdict.HOLDS): int(load / (n + 2)) for n, name in enumerate(base.invariants)}
    found = {
        ("L1", Verdict.VIOLATED): 3,
        ("M1", Verdict.SUSPECT): 1,
        ("L2", Verdict.UNVERIFIABLE): int(seconds / 30),
    }
    coverage = {name: inv.coverage(inv.hooks) for name, inv in base.invariants.items()}
    windows = {name: times(load / (n + 3), 10 + n % 7) for n, name in enumerate(base.window_times)}
    locks = list(base.lock_waits)
    return replace(
        base,
        kernel="6.12.95-amd64",
        running_seconds=seconds,
        checks=checks | found,
        coverage=coverage,
        statistics=hooks,
        window_times=windows,
        lock_waits={name: times(load / (7 * n + 5), 9 + n % 5) for n, name in enumerate(locks)},
        lock_holds={name: times(load / (3 * n + 5), 11 + n % 5) for n, name in enumerate(locks)},
        histograms={
            name: times(load / (n + 4), 12 + n % 4) for n, name in enumerate(base.histograms)
        },
        protocols=protocols(),
        violations={v.first.id: v for v in violations()},
        counters={"ENTRIES_RECORDED": int(load / 7), "LOCKS_LOST": int(seconds / 100)},
        user_seconds=seconds * 0.004,
        peak_rss_bytes=86 << 20,
        longest_tick_gap_seconds=1.043,
        taken_seconds=_NOW + seconds - 4000,
        outstanding=12,
        oldest_entry_seconds=0.0042,
        oldest=oldest(),
        audit=audit(seconds),
        run="5c0ffee5c0ffee50",
        host="web-17.example",
    )


def quiet(s: Snapshot) -> Snapshot:
    """Return the same snapshot without a defect."""
    held = {
        key: count
        for key, count in s.checks.items()
        if key[1] in (Verdict.HOLDS, Verdict.UNVERIFIABLE)
    }
    return replace(s, checks=held, violations={})


def current(seconds: float = 4000.0, minutes: float = 10.0) -> LatestSnapshot:
    """Return the latest snapshot with the history of the minutes before."""
    made = LatestSnapshot(lambda: 0.0)
    at = seconds - minutes * 60
    while at <= seconds:
        made.put(snapshot(at))
        at += 2.0
    return made


def well(**changes: Any) -> Snapshot:
    """Return a snapshot in which all checks hold and nothing is lost or outstanding.

    Most invariants are checked in full.
    """
    changed: dict[str, Any] = {
        "counters": {},
        "outstanding": 0,
        "oldest_entry_seconds": 0.0,
    } | changes
    return replace(quiet(snapshot()), **changed)


def tracepoints_only() -> Snapshot:
    """Return the snapshot of a kernel without kprobes and fentry (6.18.44)."""
    s = well()
    coverage = {name: (Coverage.NONE, "needs first_walk") for name in s.invariants}
    in_part = ("M1", "M2", "M3", "M4", "L2", "L3", "L7", "R1", "R3", "K1")
    coverage |= dict.fromkeys(in_part, (Coverage.PARTIAL, "tracepoints only"))
    coverage |= dict.fromkeys(("V3", "V4", "R2", "R4"), (Coverage.FULL, ""))
    hooks = [
        replace(hook, state=HookState.DENIED, reason=NO_HOOKS) if n > 20 else hook
        for n, hook in enumerate(s.hooks)
    ]
    return replace(
        s,
        coverage=coverage,
        hooks=tuple(hooks),
        checks={("M1", Verdict.HOLDS): 989, ("M4", Verdict.HOLDS): 989},
    )
