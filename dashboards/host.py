"""One host: what was checked, how much of it can be trusted, and what it costs."""

from __future__ import annotations

from dashboards.board import (
    GOOD_IS_ONE,
    GOOD_IS_ZERO,
    HOST,
    INVARIANT,
    KERNEL,
    STANDING,
    STANDING_TEXTS,
    Board,
    Panel,
    Query,
    Row,
)

_H = 'instance=~"$host"'
_HI = 'instance=~"$host", invariant=~"$invariant"'
_COVERAGE = {"0": "none", "0.5": "partial", "1": "full"}


def _quantile(q: float, metric: str, by: str = "") -> str:
    labels = f"instance, {by}, le" if by else "instance, le"
    return f"histogram_quantile({q}, sum by ({labels}) (rate({metric}_bucket{{{_H}}}[$__rate_interval])))"


BOARD = Board(
    uid="rmapd-host",
    title="rmapd / Host",
    description="What rmapd checked on a host, how far it could, what it found, and what that costs.",
    variables=(KERNEL, HOST, INVARIANT),
    rows=(
        Row(
            "Verdict, and how much it is worth",
            (
                Panel(
                    "stat",
                    "Standing",
                    "As the daemon's page says it, of the worst host. Red: violated. Amber: not all is known, or something is suspect; the "
                    "page and /api/v1/ have the reasons.",
                    "short",
                    (Query(f"max(rmapd_standing{{{_H}}})"),),
                    "RmapdNotAllKnown",
                    STANDING,
                    "orange",
                    STANDING_TEXTS,
                    3,
                    5,
                ),
                Panel(
                    "stat",
                    "Violations",
                    "Proven violations since the daemon started. Worth as much as the checks, the coverage and the losses beside it.",
                    "short",
                    (Query(f"sum(rmapd_violations_total{{{_HI}}})"),),
                    "RmapdInvariantViolated",
                    GOOD_IS_ZERO,
                    span=3,
                    height=5,
                ),
                Panel(
                    "stat",
                    "Suspects",
                    "The events say that an invariant is false, and it could not be confirmed here.",
                    "short",
                    (Query(f'sum(rmapd_checks_total{{{_HI}, verdict="suspect"}})'),),
                    "RmapdInvariantSuspect",
                    ((1, "orange"),),
                    span=3,
                    height=5,
                ),
                Panel(
                    "stat",
                    "Checks that hold",
                    "Checks evaluated and true since the daemon started.",
                    "short",
                    (Query(f'sum(rmapd_checks_total{{{_HI}, verdict="holds"}})'),),
                    "RmapdNotAllKnown",
                    ((1, "text"),),
                    "orange",
                    span=3,
                    height=5,
                ),
                Panel(
                    "stat",
                    "Unverifiable",
                    "Share of all checks since the daemon started for which an event was lost: neither good nor bad. No checks, no share.",
                    "percentunit",
                    (
                        Query(
                            f'sum(rmapd_checks_total{{{_HI}, verdict="unverifiable"}}) / sum(rmapd_checks_total{{{_HI}}})',
                        ),
                    ),
                    "RmapdChecksUnverifiable",
                    ((0.01, "orange"), (0.1, "red")),
                    span=3,
                    height=5,
                ),
                Panel(
                    "stat",
                    "Gate",
                    "1 while events are booked. 0 before the programs are attached and after they are detached.",
                    "short",
                    (Query(f"min(rmapd_gate_open{{{_H}}})"),),
                    "RmapdNotReady",
                    GOOD_IS_ONE,
                    "red",
                    {"0": "closed", "1": "open"},
                    3,
                    5,
                ),
                Panel(
                    "stat",
                    "Oracle",
                    "Whether page tables can be asked. Without it what is left over stays a suspect.",
                    "short",
                    (Query(f"min(rmapd_oracle_ready{{{_H}}})"),),
                    "RmapdOracleNotReady",
                    GOOD_IS_ONE,
                    "red",
                    {"0": "not calibrated", "1": "ready"},
                    3,
                    5,
                ),
                Panel(
                    "stat",
                    "Last look",
                    "How long ago the checker last looked: everything here is that old.",
                    "s",
                    (Query(f"max(time() - rmapd_snapshot_time_seconds{{{_H}}})"),),
                    "RmapdStalled",
                    ((10, "orange"), (60, "red")),
                    span=3,
                    height=5,
                ),
            ),
        ),
        Row(
            "Coverage and checks",
            (
                Panel(
                    "states",
                    "Coverage by invariant",
                    "How far this kernel and this run let an invariant be checked. `rmapd doctor` on the host says why it is not full.",
                    "short",
                    (
                        Query(
                            f"max by (invariant) (rmapd_invariant_coverage{{{_HI}}})",
                            "{{invariant}}",
                        ),
                    ),
                    "RmapdCoverageLost",
                    ((0.5, "yellow"), (1, "green")),
                    "red",
                    _COVERAGE,
                    height=11,
                ),
                Panel(
                    "graph",
                    "Checks by invariant",
                    "Checks per second. An idle machine migrates nothing, and then nothing is checked.",
                    "ops",
                    (
                        Query(
                            f"sum by (invariant) (rate(rmapd_checks_total{{{_HI}}}[$__rate_interval]))",
                            "{{invariant}}",
                        ),
                    ),
                    height=11,
                ),
                Panel(
                    "graph",
                    "Checks that do not hold",
                    "violated: false and proven. suspect: false by the events, not confirmed. unverifiable: an event was lost.",
                    "short",
                    (
                        Query(
                            f'sum by (invariant, verdict) (increase(rmapd_checks_total{{{_HI}, verdict!="holds"}}[$__rate_interval]))',
                            "{{invariant}} {{verdict}}",
                        ),
                    ),
                    "RmapdInvariantViolated",
                ),
                Panel(
                    "graph",
                    "Distinct defects",
                    "Signatures seen since the daemon started: the same defect met again counts once. The page of the daemon lists them.",
                    "short",
                    (
                        Query(
                            f"sum by (instance, verdict) (rmapd_signatures{{{_H}}})",
                            "{{instance}} {{verdict}}",
                        ),
                    ),
                    "RmapdInvariantViolated",
                    GOOD_IS_ZERO,
                ),
            ),
        ),
        Row(
            "Migration entries",
            (
                Panel(
                    "graph",
                    "Entries by what happened to them",
                    "What is inserted or copied (by fork) is removed, cleared_by_oracle, left_behind, unverifiable or outstanding. "
                    "removed_unbooked were inserted unseen.",
                    "ops",
                    (
                        Query(
                            f"sum by (event) (rate(rmapd_migration_entries_total{{{_H}}}[$__rate_interval]))",
                            "{{event}}",
                        ),
                    ),
                ),
                Panel(
                    "graph",
                    "Outstanding, and the oldest",
                    "Entries booked and not yet settled, and the age of the oldest. One that stays is what M1 and M4 are about.",
                    "short",
                    (
                        Query(
                            f"sum by (instance) (rmapd_migration_entries_outstanding{{{_H}}})",
                            "{{instance}} outstanding",
                        ),
                        Query(
                            f"max by (instance) (rmapd_migration_oldest_entry_seconds{{{_H}}})",
                            "{{instance}} oldest, s",
                        ),
                    ),
                    "RmapdMigrationEntryStuck",
                    ((10, "orange"),),
                ),
                Panel(
                    "graph",
                    "Life of an entry",
                    "Insertion to removal: every fault on the page waits this long. Estimated within buckets of a factor of eight.",
                    "s",
                    (
                        Query(
                            _quantile(0.5, "rmapd_migration_entry_seconds"), "{{instance}} median"
                        ),
                        Query(
                            _quantile(0.99, "rmapd_migration_entry_seconds"), "{{instance}} 99 %"
                        ),
                    ),
                    "RmapdMigrationEntryStuck",
                ),
                Panel(
                    "graph",
                    "Oracle",
                    "Addresses asked about, and sweeps of all page tables (one a minute is the patrol).",
                    "cpm",
                    (
                        Query(
                            f"sum by (kind) (rate(rmapd_oracle_questions_total{{{_H}}}[$__rate_interval])) * 60",
                            "{{kind}}",
                        ),
                    ),
                ),
            ),
        ),
        Row(
            "Locks",
            (
                Panel(
                    "graph",
                    "Wait, 99 %",
                    "From asking for a lock to having it: mmap_lock everywhere, other classes inside of windows.",
                    "s",
                    (
                        Query(
                            _quantile(0.99, "rmapd_lock_wait_seconds", "class, mode"),
                            "{{instance}} {{class}} {{mode}}",
                        ),
                    ),
                    "RmapdLockWaitTail",
                    ((0.1, "orange"),),
                ),
                Panel(
                    "graph",
                    "Hold, 99 %",
                    "How long a lock was held: who waits, waits for this.",
                    "s",
                    (
                        Query(
                            _quantile(0.99, "rmapd_lock_hold_seconds", "class, mode"),
                            "{{instance}} {{class}} {{mode}}",
                        ),
                    ),
                    "RmapdLockWaitTail",
                ),
                Panel(
                    "graph",
                    "Acquisitions",
                    "Locks taken per second, by class and mode.",
                    "ops",
                    (
                        Query(
                            f"sum by (class, mode) (rate(rmapd_lock_hold_seconds_count{{{_H}}}[$__rate_interval]))",
                            "{{class}} {{mode}}",
                        ),
                    ),
                ),
                Panel(
                    "graph",
                    "Waiting",
                    "Tasks that wait for a lock, on average (seconds waited per second).",
                    "short",
                    (
                        Query(
                            f"sum by (class, mode) (rate(rmapd_lock_wait_seconds_sum{{{_H}}}[$__rate_interval]))",
                            "{{class}} {{mode}}",
                        ),
                    ),
                    "RmapdLockWaitTail",
                ),
            ),
        ),
        Row(
            "Windows and walks (where functions can be hooked)",
            (
                Panel(
                    "graph",
                    "Windows by function",
                    "Calls per second of functions that change VMAs or walk rmap. Empty on a kernel without fentry and kprobes. Unsampled: "
                    "not booked, because fidelity is sampled or below.",
                    "ops",
                    (
                        Query(
                            f"sum by (function) (rate(rmapd_windows_total{{{_H}}}[$__rate_interval]))",
                            "{{function}}",
                        ),
                        Query(
                            f"sum (rate(rmapd_windows_unsampled_total{{{_H}}}[$__rate_interval]))",
                            "unsampled",
                        ),
                    ),
                ),
                Panel(
                    "graph",
                    "Distinct protocols by function",
                    "A protocol is what a window did with locks and trees. Each is judged once; a new one on a kernel in service is news.",
                    "short",
                    (Query(f"max by (function) (rmapd_protocols{{{_H}}})", "{{function}}"),),
                ),
                Panel(
                    "graph",
                    "Windows over 1 ms",
                    "Share of a function's windows that take longer than 1 ms.",
                    "percentunit",
                    (
                        Query(
                            f"1 - sum by (function) (rate(rmapd_window_seconds_bucket"
                            f'{{{_H}, le="0.001048576"}}[$__rate_interval])) / '
                            f"sum by (function) (rate(rmapd_window_seconds_count{{{_H}}}[$__rate_interval]))",
                            "{{function}}",
                        ),
                    ),
                ),
                Panel(
                    "graph",
                    "VMAs per rmap walk, 99 %",
                    "How many VMAs a walk visits: long walks hold the locks of the pages that they walk for.",
                    "short",
                    (
                        Query(
                            _quantile(0.99, "rmapd_rmap_walk_vmas", "kind"), "{{instance}} {{kind}}"
                        ),
                    ),
                ),
            ),
        ),
        Row(
            "What it costs here",
            (
                Panel(
                    "graph",
                    "Share of the machine's CPU time",
                    "BPF programs by the kernel's account (0 where `statistics = false`), and the daemon's own process. The budget is 1 %.",
                    "percentunit",
                    (
                        Query(
                            f"sum by (instance) (rate(rmapd_probe_run_seconds_total{{{_H}}}[$__rate_interval]))"
                            f" / on (instance) max by (instance) (rmapd_cpus{{{_H}}})",
                            "{{instance}} programs",
                        ),
                        Query(
                            f"sum by (instance) (rate(process_cpu_seconds_total{{{_H}}}[$__rate_interval]))"
                            f" / on (instance) max by (instance) (rmapd_cpus{{{_H}}})",
                            "{{instance}} daemon",
                        ),
                    ),
                    "RmapdOverheadOverBudget",
                    ((0.01, "orange"),),
                ),
                Panel(
                    "graph",
                    "The ten dearest hooks",
                    "Seconds per second spent in a hook's BPF program.",
                    "percentunit",
                    (
                        Query(
                            f"topk(10, sum by (hook) (rate(rmapd_probe_run_seconds_total{{{_H}}}[$__rate_interval])))",
                            "{{hook}}",
                        ),
                    ),
                    "RmapdOverheadOverBudget",
                ),
            ),
        ),
    ),
)
