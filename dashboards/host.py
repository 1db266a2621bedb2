"""The Host dashboard: what is checked, how reliable the verdicts are, and the cost."""

from __future__ import annotations

from dashboards.board import (
    CHOSEN,
    GOOD_IS_ONE,
    GOOD_IS_ZERO,
    GREY,
    HOSTS,
    INVARIANT,
    STANDING,
    STANDING_TEXTS,
    STARTS,
    VIOLATIONS,
    Board,
    Panel,
    Query,
    Row,
)

_HI = f'{CHOSEN}, invariant=~"$invariant"'
_COVERAGE = {"-1": "fell", "0": "not here", "0.5": "partial", "1": "full"}
_UNHOOKED = "no window in this time, or no function of this kernel is hooked"


def _quantile(q: float, metric: str, by: str = "") -> str:
    labels = f"<<target>>, {by}, le" if by else "<<target>>, le"
    rate = f"rate({metric}_bucket{{{CHOSEN}}}[$__rate_interval])"
    return f"histogram_quantile({q}, sum by ({labels}) ({rate}))"


BOARD = Board(
    uid="rmapd-host",
    title="rmapd / Host",
    description="Checks, coverage, findings and cost of rmapd on a host.",
    variables=(*HOSTS, INVARIANT),
    annotations=(VIOLATIONS, STARTS),
    rows=(
        Row(
            "Verdict, and its reliability",
            (
                Panel(
                    "stat",
                    "Standing",
                    "The standing of the worst host, as on the daemon's status page. Red: "
                    "violated. Amber: something is not known or is suspect. The page and /api/v1/ "
                    "have the reasons.",
                    "short",
                    (Query(f"max(rmapd_standing{{{CHOSEN}}})"),),
                    "RmapdNotAllKnown",
                    STANDING,
                    "orange",
                    STANDING_TEXTS,
                    3,
                    5,
                ),
                Panel(
                    "stat",
                    "Violated invariants",
                    "Invariants with a proven violation since the host booted: a restart of the "
                    "daemon does not clear them. Zero is significant only with checks and "
                    "coverage, and without losses.",
                    "short",
                    (Query(f"sum(rmapd_first_violation_time_seconds{{{_HI}}} > bool 0)"),),
                    "RmapdInvariantViolated",
                    GOOD_IS_ZERO,
                    span=3,
                    height=5,
                ),
                Panel(
                    "stat",
                    "Suspects",
                    "Checks that fail by the recorded events and could not be confirmed.",
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
                    "Checks with the verdict `holds` since the daemon started.",
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
                    "Share of all checks since the daemon started that depend on a lost event: "
                    "they neither hold nor fail.",
                    "percentunit",
                    (
                        Query(
                            f'sum(rmapd_checks_total{{{_HI}, verdict="unverifiable"}})'
                            f" / sum(rmapd_checks_total{{{_HI}}})",
                        ),
                    ),
                    "RmapdChecksUnverifiable",
                    (("unverifiable_ratio", "orange"), ("unverifiable_many_ratio", "red")),
                    span=3,
                    height=5,
                ),
                Panel(
                    "stat",
                    "Gate",
                    "1 while kernel events are being recorded: from attaching to detaching the "
                    "programs.",
                    "short",
                    (Query(f"min(rmapd_gate_open{{{CHOSEN}}})"),),
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
                    "Whether page tables can be read. Without that, entries left behind stay "
                    "suspects.",
                    "short",
                    (Query(f"min(rmapd_oracle_ready{{{CHOSEN}}})"),),
                    "RmapdOracleNotReady",
                    GOOD_IS_ONE,
                    "orange",
                    {"0": "not calibrated", "1": "ready"},
                    3,
                    5,
                ),
                Panel(
                    "stat",
                    "Last read",
                    "Seconds since the checker last read the kernel's tables: the age of all data "
                    "here.",
                    "s",
                    (Query(f"max(time() - rmapd_snapshot_time_seconds{{{CHOSEN}}})"),),
                    "RmapdStalled",
                    (("read_late_seconds", "orange"), ("read_stalled_seconds", "red")),
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
                    "The lowest coverage of each invariant on the hosts. Grey: this kernel, or "
                    "its configuration, has not what the check needs. Fell: it was higher within "
                    "a day. `rmapd doctor` on the host prints why it is not full.",
                    "short",
                    (
                        Query(
                            f"min by (invariant) (-(rmapd_invariant_coverage{{{_HI}}}"
                            f" < bool max_over_time(rmapd_invariant_coverage{{{_HI}}}[1d]) == 1)"
                            f" or rmapd_invariant_coverage{{{_HI}}})",
                            "{{invariant}}",
                        ),
                    ),
                    "RmapdCoverageLost",
                    ((-1, "orange"), (0, GREY), (0.5, "yellow"), (1, "green")),
                    GREY,
                    _COVERAGE,
                    height=13,
                ),
                Panel(
                    "graph",
                    "Checks by invariant",
                    "Checks per second. An idle machine migrates no pages, so there is little to "
                    "check.",
                    "ops",
                    (
                        Query(
                            "sum by (invariant)"
                            f" (rate(rmapd_checks_total{{{_HI}}}[$__rate_interval]))",
                            "{{invariant}}",
                        ),
                    ),
                    height=13,
                ),
                Panel(
                    "graph",
                    "Checks that do not hold",
                    "violated: proven false. suspect: false by the events, not confirmed. "
                    "unverifiable: an event was lost.",
                    "short",
                    (
                        Query(
                            "sum by (invariant, verdict) (increase(rmapd_checks_total"
                            f'{{{_HI}, verdict!="holds"}}[$__rate_interval]))',
                            "{{invariant}} {{verdict}}",
                        ),
                    ),
                    "RmapdInvariantViolated",
                ),
                Panel(
                    "graph",
                    "Distinct defects",
                    "Signatures since the daemon started: a repeated defect counts once. The "
                    "status page lists them.",
                    "short",
                    (
                        Query(
                            f"sum by (<<target>>, verdict) (rmapd_signatures{{{CHOSEN}}})",
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
                    "Entries by event",
                    "An inserted or copied (by fork) entry ends as removed, cleared_by_oracle, "
                    "left_behind, unverifiable or outstanding. removed_unrecorded: removed, but "
                    "the insertion was not recorded.",
                    "ops",
                    (
                        Query(
                            "sum by (event)"
                            f" (rate(rmapd_migration_entries_total{{{CHOSEN}}}[$__rate_interval]))",
                            "{{event}}",
                        ),
                    ),
                ),
                Panel(
                    "graph",
                    "Oracle",
                    "Addresses read in page tables, and sweeps of all page tables (the periodic "
                    "scan is one a minute).",
                    "cpm",
                    (
                        Query(
                            "sum by (kind)"
                            " (rate(rmapd_oracle_questions_total"
                            f"{{{CHOSEN}}}[$__rate_interval])) * 60",
                            "{{kind}}",
                        ),
                    ),
                ),
                Panel(
                    "graph",
                    "Outstanding entries",
                    "Recorded entries without a removal or a verdict. M1 and M4 judge entries "
                    "that stay.",
                    "short",
                    (
                        Query(
                            "sum by (<<target>>)"
                            f" (rmapd_migration_entries_outstanding{{{CHOSEN}}})",
                            "{{instance}}",
                        ),
                    ),
                    "RmapdEntriesPileUp",
                    (("entries_outstanding", "orange"),),
                    span=8,
                ),
                Panel(
                    "graph",
                    "Oldest entry",
                    "Age of the oldest outstanding entry, and the age limit of the daemon "
                    "(max_entry_age_seconds).",
                    "s",
                    (
                        Query(
                            "max by (<<target>>)"
                            f" (rmapd_migration_oldest_entry_seconds{{{CHOSEN}}})",
                            "{{instance}}",
                        ),
                        Query(f"min(rmapd_max_entry_age_seconds{{{CHOSEN}}})", "limit"),
                    ),
                    "RmapdMigrationEntryStuck",
                    span=8,
                ),
                Panel(
                    "graph",
                    "Lifetime of an entry",
                    "From insertion to removal: faults on the page wait that long. Estimated "
                    "within buckets of a factor of two.",
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
                    span=8,
                    nothing="no migration entry in this time",
                ),
            ),
        ),
        Row(
            "State audit",
            (
                Panel(
                    "graph",
                    "Objects looked at",
                    "Mms, VMAs, maple nodes, climbs in interval trees and so on, by the audit.",
                    "ops",
                    (
                        Query(
                            "sum by (kind)"
                            f" (rate(rmapd_audit_objects_total{{{CHOSEN}}}[$__rate_interval]))",
                            "{{kind}}",
                        ),
                    ),
                    span=8,
                ),
                Panel(
                    "graph",
                    "Oldest look",
                    "Age of the last look at the mm that has waited the longest. A larger "
                    "audit_budget makes it shorter.",
                    "s",
                    (
                        Query(
                            f"max by (<<target>>) (rmapd_audit_pass_seconds{{{CHOSEN}}}"
                            f" and on (<<target>>) rmapd_audit_ready{{{CHOSEN}}} == 1)",
                            "{{instance}}",
                        ),
                    ),
                    "RmapdAuditBehind",
                    (("audit_pass_seconds", "orange"),),
                    span=8,
                    nothing="no audit on this kernel",
                ),
                Panel(
                    "graph",
                    "Doubts",
                    "Ranges that looked wrong at first, by how that ended. Cleared: the look met "
                    "a change half-way.",
                    "cpm",
                    (
                        Query(
                            "sum by (ended)"
                            f" (rate(rmapd_audit_doubts_total{{{CHOSEN}}}[$__rate_interval])) * 60",
                            "{{ended}}",
                        ),
                    ),
                    span=8,
                ),
            ),
        ),
        Row(
            "Locks",
            (
                Panel(
                    "graph",
                    "Wait, 99 %",
                    "From request to acquisition, where the lock was not free: mmap_lock "
                    "everywhere, other classes inside windows. Within buckets of a factor of two.",
                    "s",
                    (
                        Query(
                            _quantile(0.99, "rmapd_lock_wait_seconds", "class, mode"),
                            "{{instance}} {{class}} {{mode}}",
                        ),
                    ),
                    "RmapdLockWaitTail",
                    (("lock_wait_seconds", "orange"),),
                    nothing="no wait in this time",
                ),
                Panel(
                    "graph",
                    "Hold, 99 %",
                    "Time from acquisition to release, which waiters wait for.",
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
                    "Locks taken per second, by class and mode: without a wait, and after one.",
                    "ops",
                    (
                        Query(
                            "sum by (class, mode)"
                            f" (rate(rmapd_lock_without_wait_total{{{CHOSEN}}}[$__rate_interval]))",
                            "{{class}} {{mode}}, free",
                        ),
                        Query(
                            "sum by (class, mode)"
                            f" (rate(rmapd_lock_wait_seconds_count{{{CHOSEN}}}[$__rate_interval]))",
                            "{{class}} {{mode}}, waited",
                        ),
                    ),
                ),
                Panel(
                    "graph",
                    "Waiting tasks",
                    "Average number of tasks that wait for a lock (seconds waited per second).",
                    "short",
                    (
                        Query(
                            "sum by (class, mode)"
                            f" (rate(rmapd_lock_wait_seconds_sum{{{CHOSEN}}}[$__rate_interval]))",
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
                    "Calls per second of functions that change VMAs or walk rmap. Empty on a "
                    "kernel without fentry and kprobes. unsampled: not recorded because of "
                    "sampling.",
                    "ops",
                    (
                        Query(
                            "sum by (function)"
                            f" (rate(rmapd_windows_total{{{CHOSEN}}}[$__rate_interval]))",
                            "{{function}}",
                        ),
                        Query(
                            "sum (rate(rmapd_windows_unsampled_total"
                            f"{{{CHOSEN}}}[$__rate_interval])"
                            f" and on (<<target>>) rmapd_windows_total{{{CHOSEN}}})",
                            "unsampled",
                        ),
                    ),
                    nothing=_UNHOOKED,
                ),
                Panel(
                    "graph",
                    "Distinct protocols by function",
                    "A protocol is what a window does with locks and trees; each is judged once. "
                    "New ones are rare on a kernel that has run for long.",
                    "short",
                    (Query(f"max by (function) (rmapd_protocols{{{CHOSEN}}})", "{{function}}"),),
                    nothing=_UNHOOKED,
                ),
                Panel(
                    "graph",
                    "Windows over 1 ms",
                    "Share of a function's windows that take longer than 1 ms.",
                    "percentunit",
                    (
                        Query(
                            f"1 - sum by (function) (rate(rmapd_window_seconds_bucket"
                            f'{{{CHOSEN}, le="0.001048576"}}[$__rate_interval])) / '
                            "sum by (function)"
                            f" (rate(rmapd_window_seconds_count{{{CHOSEN}}}[$__rate_interval]))",
                            "{{function}}",
                        ),
                    ),
                    nothing=_UNHOOKED,
                ),
                Panel(
                    "graph",
                    "VMAs per rmap walk, 99 %",
                    "VMAs that a walk visits: a long walk holds its locks for long.",
                    "short",
                    (
                        Query(
                            _quantile(0.99, "rmapd_rmap_walk_vmas", "kind"), "{{instance}} {{kind}}"
                        ),
                    ),
                    nothing=_UNHOOKED,
                ),
            ),
        ),
        Row(
            "Cost",
            (
                Panel(
                    "graph",
                    "Share of the machine's CPU time",
                    "BPF programs by the kernel's statistics (0 with `statistics = false`), the "
                    "daemon's process, and the budget of the programs.",
                    "percentunit",
                    (
                        Query(
                            "sum by (<<target>>)"
                            f" (rate(rmapd_probe_run_seconds_total{{{CHOSEN}}}[$__rate_interval]))"
                            f" / on (<<target>>) max by (<<target>>) (rmapd_cpus{{{CHOSEN}}})",
                            "{{instance}} programs",
                        ),
                        Query(
                            "sum by (<<target>>)"
                            f" (rate(process_cpu_seconds_total{{{CHOSEN}}}[$__rate_interval]))"
                            f" / on (<<target>>) max by (<<target>>) (rmapd_cpus{{{CHOSEN}}})",
                            "{{instance}} daemon",
                        ),
                        Query(f"min(rmapd_budget_ratio{{{CHOSEN}}})", "budget"),
                    ),
                    "RmapdOverheadOverBudget",
                ),
                Panel(
                    "graph",
                    "The ten most expensive hooks",
                    "Seconds per second in a hook's BPF programs.",
                    "percentunit",
                    (
                        Query(
                            "topk(10, sum by (hook)"
                            " (rate(rmapd_probe_run_seconds_total"
                            f"{{{CHOSEN}}}[$__rate_interval])))",
                            "{{hook}}",
                        ),
                    ),
                    "RmapdOverheadOverBudget",
                ),
            ),
        ),
    ),
)
