"""Snapshots made by hand, for tests of code that reads snapshots."""

from __future__ import annotations

import functools
from typing import Any

from tests.support.native import LAYOUTS
from tracer.attach import plan
from tracer.attach.plan import AttachMethod, Hook, HookState, PlannedHook
from tracer.bpf.programs import RunStatistics
from tracer.daemon.probes import probes_folder
from tracer.invariants.catalogue import discover
from tracer.invariants.verdict import Finding, Tally, Verdict
from tracer.results.snapshot import Snapshot, StoreState
from tracer.tables.histogram import SLOTS, Histogram

FINDING = Finding(
    "M1",
    Verdict.VIOLATED,
    "migrate_pages",
    "level=PTE",
    "an entry <b> was left behind",
    {"pid": 7, "tgid": 7, "comm": "x"},
    ("migrate_pages+0x1",),
    {"addr": "0x1000"},
)


def snapshot(**changes: Any) -> Snapshot:
    known = discover()
    tally = Tally()
    tally.record(FINDING, 1_700_000_000.0)
    tally.add("M1", Verdict.HOLDS, 41)
    hooks = (
        PlannedHook(
            "migration",
            Hook("set_migration_pte", ["raw_tp:set_migration_pte"], ""),
            HookState.ATTACHED,
            (AttachMethod("raw_tp", "set_migration_pte", ()),),
        ),
        PlannedHook(
            "migration",
            Hook("gone", ["raw_tp:gone"], ""),
            HookState.MISSING,
            reason="no raw tracepoint gone in this kernel",
        ),
    )
    slots = [0] * SLOTS
    slots[10], slots[39] = 3, 1
    values: dict[str, Any] = {
        "host": "a-host",
        "kernel": "6.1-test",
        "fidelity": "full",
        "gate_open": True,
        "running_seconds": 12.5,
        "hooks": hooks,
        "invariants": known,
        "coverage": {
            name: inv.coverage({"set_migration_pte", "remove_migration_pte"})
            for name, inv in known.items()
        },
        "checks": dict(tally.checks),
        "violations": {v.first.id: v for v in tally.violations.values()},
        "statistics": {"set_migration_pte": RunStatistics(1, 10, 0.5, 2)},
        "histograms": {"HIST_MIGRATION_ENTRY": Histogram(tuple(slots), 5_000_000_000)},
        "window_times": {"vma_expand": Histogram(tuple(slots), 5_000_000_000)},
        "counters": {"LEDGER_LOST": 3, "EVIDENCE_LOST": 1, "ENTRIES_RECORDED": 44},
        "oracle": {"asked": 5, "cleared": 2},
    }
    return Snapshot(**(values | changes))


@functools.cache
def _whole_plan() -> tuple[PlannedHook, ...]:
    return tuple(
        PlannedHook(path.stem, hook, HookState.ATTACHED, (AttachMethod("kprobe", "x", ()),))
        for path in sorted(probes_folder().glob("*.toml"))
        for hook in plan.read_probe_object(path).hook
    )


def full() -> Snapshot:
    """Return a snapshot that has more than any kernel.

    Every hook of the plan is attached, every window and class of locks seen, and every invariant
    violated once.
    """
    hooks = _whole_plan()
    enums, some, known = LAYOUTS.enums, Histogram((1,) * SLOTS, 64), discover()
    windows = {
        name.removeprefix("WINDOW_"): some
        for name in enums["window"]
        if name not in ("WINDOWS", "WINDOW_outside")
    }
    classes = {
        name.removeprefix("CLASS_"): some for name in enums["lock_class"] if name != "LOCK_CLASSES"
    }
    return snapshot(
        hooks=hooks,
        statistics={hook.hook.name: RunStatistics(1, 1, 1.0, 1) for hook in hooks},
        histograms=dict.fromkeys(enums["hist"], some),
        window_times=windows,
        lock_waits=classes,
        lock_holds=classes,
        checks={(name, verdict): 1 for name in known for verdict in Verdict},
        store=StoreState("/var/lib/rmapd/rmapd.db"),
    )
