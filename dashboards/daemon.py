"""The Daemon dashboard: whether rmapd runs and checks, what it loses, what it uses."""

from __future__ import annotations

from dashboards.board import GOOD_IS_ONE, HOST, KERNEL, Board, Panel, Query, Row

_H = 'instance=~"$host"'
_OURS = "and on (job, instance) rmapd_gate_open"
"""Selects the process_* series of rmapd: other exporters have them too."""
_UP = {"0": "no", "1": "yes"}

BOARD = Board(
    uid="rmapd-daemon",
    title="rmapd / Daemon",
    description="Whether rmapd itself works: up, checking, without losses, and within its budget.",
    variables=(KERNEL, HOST),
    rows=(
        Row(
            "Availability",
            (
                Panel(
                    "stat",
                    "Up",
                    "Whether Prometheus can scrape the daemon.",
                    "short",
                    (Query(f'min(up{{job="rmapd", {_H}}})'),),
                    "RmapdDown",
                    GOOD_IS_ONE,
                    "red",
                    _UP,
                    4,
                    5,
                ),
                Panel(
                    "stat",
                    "Gate",
                    "1 while kernel events are being recorded.",
                    "short",
                    (Query(f"min(rmapd_gate_open{{{_H}}})"),),
                    "RmapdNotReady",
                    GOOD_IS_ONE,
                    "red",
                    {"0": "closed", "1": "open"},
                    4,
                    5,
                ),
                Panel(
                    "stat",
                    "Last read of the tables",
                    "Seconds since the checker last read the kernel's tables. It does so every "
                    "second; if it stops, the web server still answers.",
                    "s",
                    (Query(f"max(time() - rmapd_snapshot_time_seconds{{{_H}}})"),),
                    "RmapdStalled",
                    ((10, "orange"), (60, "red")),
                    span=4,
                    height=5,
                ),
                Panel(
                    "stat",
                    "Uptime",
                    "Age of the process. All of its counts start at zero with it.",
                    "s",
                    (Query(f"min(time() - (process_start_time_seconds{{{_H}}} {_OURS}))"),),
                    span=4,
                    height=5,
                ),
                Panel(
                    "stat",
                    "Fidelity",
                    "The fidelity in force: full, owner (without rwsem programs) or migration "
                    "(only the ledger).",
                    "short",
                    (Query(f"count by (level) (rmapd_fidelity{{{_H}}} == 1)", "{{level}}"),),
                    span=4,
                    height=5,
                ),
                Panel(
                    "stat",
                    "Version",
                    "The versions in use, with the number of hosts of each.",
                    "short",
                    (Query(f"count by (version) (rmapd_build_info{{{_H}}})", "{{version}}"),),
                    span=4,
                    height=5,
                ),
            ),
        ),
        Row(
            "Losses",
            (
                Panel(
                    "graph",
                    "Events lost, by kind",
                    "A lost event makes checks unverifiable, never violated. A defect in a lost "
                    "event stays unseen.",
                    "short",
                    (
                        Query(
                            "sum by (instance, kind)"
                            f" (increase(rmapd_events_lost_total{{{_H}}}[$__rate_interval]))",
                            "{{instance}} {{kind}}",
                        ),
                    ),
                    "RmapdEventsLost",
                    ((1, "orange"),),
                ),
                Panel(
                    "graph",
                    "Program runs skipped by the kernel, by probe object",
                    "The kernel skips a program that is already running on the CPU, often with "
                    "lazy preemption.",
                    "short",
                    (
                        Query(
                            "sum by (instance, probe_object)"
                            f" (increase(rmapd_probe_missed_runs_total{{{_H}}}[$__rate_interval]))",
                            "{{instance}} {{probe_object}}",
                        ),
                    ),
                    "RmapdChecksUnverifiable",
                    ((1, "orange"),),
                ),
                Panel(
                    "graph",
                    "Hooks attached",
                    "Attached hooks of the attach plan. The plan has the names of all kernels, so "
                    "no kernel attaches all of them.",
                    "short",
                    (
                        Query(
                            f"sum by (instance) (rmapd_probe_attached{{{_H}}})",
                            "{{instance}} attached",
                        ),
                        Query(
                            f"count by (instance) (rmapd_probe_attached{{{_H}}})", "{{instance}} of"
                        ),
                    ),
                    "RmapdCoverageLost",
                ),
                Panel(
                    "graph",
                    "Invariants checked",
                    "Invariants with full and with partial coverage.",
                    "short",
                    (
                        Query(
                            f"sum by (instance) (rmapd_invariant_coverage{{{_H}}} == bool 1)",
                            "{{instance}} full",
                        ),
                        Query(
                            f"sum by (instance) (rmapd_invariant_coverage{{{_H}}} == bool 0.5)",
                            "{{instance}} partial",
                        ),
                    ),
                    "RmapdCoverageLost",
                ),
            ),
        ),
        Row(
            "Resources",
            (
                Panel(
                    "graph",
                    "Memory",
                    "Resident memory of the process, now and at its peak, without the kernel's "
                    "maps.",
                    "bytes",
                    (
                        Query(
                            f"process_resident_memory_bytes{{{_H}}}"
                            f" and on (job, instance) rmapd_gate_open{{{_H}}}",
                            "{{instance}} resident",
                        ),
                        Query(f"rmapd_peak_rss_bytes{{{_H}}}", "{{instance}} peak"),
                    ),
                    "",
                    ((209715200, "orange"),),
                ),
                Panel(
                    "graph",
                    "CPU time of the process",
                    "Share of one CPU, with the programs that the oracle (page-table walker) runs.",
                    "percentunit",
                    (
                        Query(
                            f"rate(process_cpu_seconds_total{{{_H}}}[$__rate_interval]) {_OURS}",
                            "{{instance}} user and system",
                        ),
                        Query(
                            f"rate(rmapd_user_seconds_total{{{_H}}}[$__rate_interval])",
                            "{{instance}} user",
                        ),
                    ),
                    "RmapdOverheadOverBudget",
                ),
                Panel(
                    "graph",
                    "Longest gap between two ticks",
                    "Since the daemon began. Ticks are due once a second; what keeps the loop, "
                    "such as a sweep of all page tables, also delays verdicts.",
                    "s",
                    (Query(f"rmapd_tick_longest_gap_seconds{{{_H}}}", "{{instance}}"),),
                    "RmapdStalled",
                    ((2, "orange"),),
                ),
                Panel(
                    "graph",
                    "Time per run, the ten slowest hooks",
                    "By the kernel's BPF statistics, which include the time to read the clock.",
                    "s",
                    (
                        Query(
                            "topk(10, sum by (hook)"
                            f" (rate(rmapd_probe_run_seconds_total{{{_H}}}[$__rate_interval]))"
                            " / (sum by (hook)"
                            f" (rate(rmapd_probe_runs_total{{{_H}}}[$__rate_interval])) > 0))",
                            "{{hook}}",
                        ),
                    ),
                    "RmapdOverheadOverBudget",
                ),
                Panel(
                    "graph",
                    "Open files",
                    "Each BPF program, link and map is a file descriptor. The number does not grow "
                    "after the gate opens.",
                    "short",
                    (Query(f"process_open_fds{{{_H}}} {_OURS}", "{{instance}}"),),
                ),
                Panel(
                    "graph",
                    "Series per scrape",
                    "Fewer than 720 by design, and constant from the first scrape on.",
                    "short",
                    (Query(f'scrape_samples_scraped{{job="rmapd", {_H}}}', "{{instance}}"),),
                    "",
                    ((720, "red"),),
                ),
                Panel(
                    "graph",
                    "Duration of a scrape",
                    "A scrape reads the last snapshot; the checker makes one a second at most.",
                    "s",
                    (Query(f'scrape_duration_seconds{{job="rmapd", {_H}}}', "{{instance}}"),),
                ),
            ),
        ),
    ),
)
