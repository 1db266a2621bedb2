"""The Fleet dashboard: many hosts by kernel release, from recorded series alone (docs/FLEET.md)."""

from __future__ import annotations

from dashboards.board import (
    GOOD_IS_ZERO,
    GREY,
    RECORDED,
    Annotation,
    Board,
    Panel,
    Query,
    Row,
    Variable,
)

_K = RECORDED
_KI = f'{RECORDED}, invariant=~"$invariant"'
_H = '<<cluster>>=~"$cluster", job=~"$job"'
"""Of recorded series without the kernel."""

BOARD = Board(
    uid="rmapd-fleet",
    title="rmapd / Fleet",
    description="Violations and coverage by kernel release, and hosts that stand out.",
    variables=(
        Variable("cluster", "Cluster", "label_values(kernel:rmapd_hosts:count, <<cluster>>)"),
        Variable(
            "job", "Job", 'label_values(kernel:rmapd_hosts:count{<<cluster>>=~"$cluster"}, job)'
        ),
        Variable("kernel", "Kernel", f"label_values(kernel:rmapd_hosts:count{{{_H}}}, kernel)"),
        Variable(
            "invariant", "Invariant", "label_values(kernel_invariant:rmapd_coverage:avg, invariant)"
        ),
    ),
    annotations=(
        Annotation(
            "Violations",
            "sum by (kernel, invariant)"
            f" (kernel_invariant:rmapd_violations:increase5m{{{_KI}}}) > 0",
            "{{invariant}} violated",
            "Kernel {{kernel}}: a violation was proven.",
            "red",
            "invariant,kernel",
        ),
    ),
    window="now-7d",
    rows=(
        Row(
            "Violations by kernel",
            (
                Panel(
                    "stat",
                    "Hosts",
                    "Hosts whose gate is open.",
                    "short",
                    (Query(f"sum(kernel:rmapd_hosts:count{{{_K}}})"),),
                    "RmapdDown",
                    span=3,
                    height=5,
                ),
                Panel(
                    "stat",
                    "Hosts with a violation",
                    "Hosts with a proven violation since they booted.",
                    "short",
                    (Query(f"sum(instance_kernel:rmapd_violated:count{{{_K}}} > bool 0)"),),
                    "RmapdInvariantViolated",
                    GOOD_IS_ZERO,
                    span=3,
                    height=5,
                ),
                Panel(
                    "stat",
                    "Hosts not green",
                    "Amber or red hosts. The status page of each has the reasons.",
                    "short",
                    (Query(f"sum(instance_kernel:rmapd_standing:max{{{_K}}} > bool 0)"),),
                    "RmapdNotAllKnown",
                    ((1, "orange"),),
                    span=3,
                    height=5,
                ),
                Panel(
                    "stat",
                    "Kernel releases",
                    "Kernel releases that rmapd runs on.",
                    "short",
                    (Query(f"count(kernel:rmapd_hosts:count{{{_K}}})"),),
                    span=3,
                    height=5,
                ),
                Panel(
                    "graph",
                    "Hosts by kernel",
                    "The number of hosts of each release.",
                    "short",
                    (Query(f"sum by (kernel) (kernel:rmapd_hosts:count{{{_K}}})", "{{kernel}}"),),
                    height=5,
                ),
                Panel(
                    "bars",
                    "Violations by kernel and invariant",
                    "Proven violations on all hosts of a kernel since their daemons started. Zero "
                    "is significant only with coverage and checks.",
                    "short",
                    (
                        Query(
                            "topk(30, sum by (kernel, invariant)"
                            f" (kernel_invariant:rmapd_violations:sum{{{_KI}}}))",
                            "{{kernel}} {{invariant}}",
                        ),
                    ),
                    "RmapdInvariantViolated",
                    GOOD_IS_ZERO,
                    height=10,
                ),
                Panel(
                    "graph",
                    "Verdicts other than `holds`, by kernel",
                    "Checks per second on all hosts of a kernel.",
                    "ops",
                    (
                        Query(
                            "sum by (kernel, invariant, verdict)"
                            " (kernel_invariant_verdict:rmapd_checks:rate5m"
                            f'{{{_KI}, verdict!="holds"}})',
                            "{{kernel}} {{invariant}} {{verdict}}",
                        ),
                    ),
                    "RmapdInvariantSuspect",
                    height=10,
                ),
            ),
        ),
        Row(
            "Coverage and checks",
            (
                Panel(
                    "bars",
                    "Coverage by kernel and invariant",
                    "Average of a kernel's hosts: full is 100 %, partial 50 %. Grey: not "
                    "checkable there. Hosts of one kernel differ by configuration.",
                    "percentunit",
                    (
                        Query(
                            "avg by (kernel, invariant)"
                            f" (kernel_invariant:rmapd_coverage:avg{{{_KI}}})",
                            "{{kernel}} {{invariant}}",
                        ),
                    ),
                    "RmapdCoverageLost",
                    ((0.001, "yellow"), (1, "green")),
                    GREY,
                    {"0": "not here"},
                    height=18,
                ),
                Panel(
                    "graph",
                    "Checks by kernel",
                    "Checks per second on all hosts of a kernel.",
                    "ops",
                    (
                        Query(
                            "sum by (kernel)"
                            f" (kernel_invariant_verdict:rmapd_checks:rate5m{{{_KI}}})",
                            "{{kernel}}",
                        ),
                    ),
                    height=18,
                ),
            ),
        ),
        Row(
            "Outliers",
            (
                Panel(
                    "bars",
                    "Violations",
                    "The ten hosts with the most violations since their daemons started.",
                    "short",
                    (
                        Query(
                            f"topk(10, instance_kernel:rmapd_violations:sum{{{_K}}})",
                            "{{instance}} {{kernel}}",
                        ),
                    ),
                    "RmapdInvariantViolated",
                    GOOD_IS_ZERO,
                ),
                Panel(
                    "bars",
                    "Unverifiable checks",
                    "The ten hosts with the largest share of unverifiable checks in an hour.",
                    "percentunit",
                    (
                        Query(
                            f"topk(10, instance:rmapd_unverifiable:ratio_rate1h{{{_H}}})",
                            "{{instance}}",
                        ),
                    ),
                    "RmapdChecksUnverifiable",
                    (("unverifiable_ratio", "orange"), ("unverifiable_many_ratio", "red")),
                ),
                Panel(
                    "bars",
                    "Events lost",
                    "The ten hosts with the most lost events in the last hour.",
                    "short",
                    (
                        Query(
                            f"topk(10, instance:rmapd_events_lost:increase1h{{{_H}}})",
                            "{{instance}}",
                        ),
                    ),
                    "RmapdEventsLost",
                    ((1, "orange"),),
                ),
                Panel(
                    "bars",
                    "CPU time, of the budget",
                    "The ten hosts on which rmapd and its programs take the largest part of the "
                    "daemon's budget.",
                    "percentunit",
                    (
                        Query(
                            f"topk(10, instance:rmapd_overhead_of_budget:ratio_rate5m{{{_H}}})",
                            "{{instance}}",
                        ),
                    ),
                    "RmapdOverheadOverBudget",
                    ((1, "orange"),),
                ),
                Panel(
                    "bars",
                    "Lock waits, 99 %",
                    "The ten longest 99th percentiles of lock waits, of locks that were not free.",
                    "s",
                    (
                        Query(
                            "topk(10, instance_class_mode:rmapd_lock_wait_seconds:p99_rate5m"
                            f"{{{_H}}})",
                            "{{instance}} {{class}} {{mode}}",
                        ),
                    ),
                    "RmapdLockWaitTail",
                    (("lock_wait_seconds", "orange"),),
                    nothing="no wait in five minutes",
                ),
                Panel(
                    "bars",
                    "Oldest migration entry, of the age limit",
                    "The ten hosts whose oldest migration entry is nearest to the daemon's age "
                    "limit, or above it.",
                    "percentunit",
                    (
                        Query(
                            "topk(10, instance:rmapd_migration_oldest_entry_of_limit:ratio"
                            f"{{{_H}}})",
                            "{{instance}}",
                        ),
                    ),
                    "RmapdMigrationEntryStuck",
                    ((1, "orange"),),
                ),
            ),
        ),
    ),
)
