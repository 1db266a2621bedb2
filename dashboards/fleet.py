"""Many hosts, by kernel release. Needs recorded series only, which are what a fleet federates (docs/FLEET.md)."""

from __future__ import annotations

from dashboards.board import GOOD_IS_ZERO, Board, Panel, Query, Row, Variable

_K = 'kernel=~"$kernel"'
_KI = 'kernel=~"$kernel", invariant=~"$invariant"'

BOARD = Board(
    uid="rmapd-fleet",
    title="rmapd / Fleet",
    description="Which kernels break which invariant, how far each lets them be checked, and which hosts stand out.",
    variables=(
        Variable("kernel", "Kernel", "label_values(kernel:rmapd_hosts:count, kernel)"),
        Variable(
            "invariant", "Invariant", "label_values(kernel_invariant:rmapd_coverage:avg, invariant)"
        ),
    ),
    window="now-7d",
    rows=(
        Row(
            "Which kernel breaks what",
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
                    "Hosts on which a violation was proven since their daemon started.",
                    "short",
                    (Query(f"sum(instance_kernel:rmapd_violations:sum{{{_K}}} > bool 0)"),),
                    "RmapdInvariantViolated",
                    GOOD_IS_ZERO,
                    span=3,
                    height=5,
                ),
                Panel(
                    "stat",
                    "Hosts not green",
                    "Hosts whose silence is no proof, or that are red: their page has the reasons.",
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
                    "Releases that rmapd runs on.",
                    "short",
                    (Query(f"count(kernel:rmapd_hosts:count{{{_K}}})"),),
                    span=3,
                    height=5,
                ),
                Panel(
                    "graph",
                    "Hosts by kernel",
                    "How many hosts run which release.",
                    "short",
                    (Query(f"sum by (kernel) (kernel:rmapd_hosts:count{{{_K}}})", "{{kernel}}"),),
                    height=5,
                ),
                Panel(
                    "bars",
                    "Violations by kernel and invariant",
                    "Proven violations on all hosts of a kernel. Zero means something only where there is coverage and there are checks.",
                    "short",
                    (
                        Query(
                            f"topk(30, sum by (kernel, invariant) (kernel_invariant:rmapd_violations:sum{{{_KI}}}))",
                            "{{kernel}} {{invariant}}",
                        ),
                    ),
                    "RmapdInvariantViolated",
                    GOOD_IS_ZERO,
                    height=10,
                ),
                Panel(
                    "graph",
                    "Verdicts that are not `holds`, by kernel",
                    "Per second, on all hosts of a kernel.",
                    "ops",
                    (
                        Query(
                            "sum by (kernel, invariant, verdict)"
                            f' (kernel_invariant_verdict:rmapd_checks:rate5m{{{_KI}, verdict!="holds"}})',
                            "{{kernel}} {{invariant}} {{verdict}}",
                        ),
                    ),
                    "RmapdInvariantSuspect",
                    height=10,
                ),
            ),
        ),
        Row(
            "How far it is checked",
            (
                Panel(
                    "bars",
                    "Coverage by kernel and invariant",
                    "Average over a kernel's hosts: full is 100 %, partial 50 %. Hosts of one kernel differ by configuration.",
                    "percentunit",
                    (
                        Query(
                            f"avg by (kernel, invariant) (kernel_invariant:rmapd_coverage:avg{{{_KI}}})",
                            "{{kernel}} {{invariant}}",
                        ),
                    ),
                    "RmapdCoverageLost",
                    ((0.5, "yellow"), (1, "green")),
                    "red",
                    height=12,
                ),
                Panel(
                    "graph",
                    "Checks by kernel",
                    "Checks per second on all hosts of a kernel.",
                    "ops",
                    (
                        Query(
                            f"sum by (kernel) (kernel_invariant_verdict:rmapd_checks:rate5m{{{_KI}}})",
                            "{{kernel}}",
                        ),
                    ),
                    height=12,
                ),
            ),
        ),
        Row(
            "Outliers",
            (
                Panel(
                    "bars",
                    "Violations",
                    "The ten hosts with the most.",
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
                    "The ten hosts with the largest share of checks for which an event was lost, over an hour.",
                    "percentunit",
                    (Query("topk(10, instance:rmapd_unverifiable:ratio_rate1h)", "{{instance}}"),),
                    "RmapdChecksUnverifiable",
                    ((0.01, "orange"), (0.1, "red")),
                ),
                Panel(
                    "bars",
                    "Events lost",
                    "The ten hosts that lost the most in the last hour.",
                    "short",
                    (Query("topk(10, instance:rmapd_events_lost:increase1h)", "{{instance}}"),),
                    "RmapdEventsLost",
                    ((1, "orange"),),
                ),
                Panel(
                    "bars",
                    "Overhead",
                    "The ten hosts with the largest share of CPU time in rmapd and its programs.",
                    "percentunit",
                    (Query("topk(10, instance:rmapd_overhead:ratio_rate5m)", "{{instance}}"),),
                    "RmapdOverheadOverBudget",
                    ((0.01, "orange"),),
                ),
                Panel(
                    "bars",
                    "Lock waits, 99 %",
                    "The ten longest tails.",
                    "s",
                    (
                        Query(
                            "topk(10, instance_class_mode:rmapd_lock_wait_seconds:p99_rate5m)",
                            "{{instance}} {{class}} {{mode}}",
                        ),
                    ),
                    "RmapdLockWaitTail",
                    ((0.1, "orange"),),
                ),
                Panel(
                    "bars",
                    "Oldest migration entry",
                    "The ten oldest.",
                    "s",
                    (
                        Query(
                            "topk(10, instance:rmapd_migration_oldest_entry_seconds:max)",
                            "{{instance}}",
                        ),
                    ),
                    "RmapdMigrationEntryStuck",
                    ((10, "orange"),),
                ),
            ),
        ),
    ),
)
