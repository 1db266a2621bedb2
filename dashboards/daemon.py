"""The Daemon dashboard: whether rmapd runs and checks, what it loses, what it uses."""

from __future__ import annotations

from dashboards.board import (
    CHOSEN,
    GOOD_IS_ONE,
    HOSTS,
    STARTS,
    VIOLATIONS,
    Board,
    Panel,
    Query,
    Row,
)

_OURS = "and on (<<target>>) rmapd_gate_open"
"""Selects the process_* series of rmapd: other exporters have them too."""
_UP = {"0": "no", "1": "yes"}
_HOOKS = (
    ("attached", "attached|at_times"),
    ("paused", "paused"),
    ("not in this kernel", "absent|lacking|dependent"),
    ("refused by it", "refused|unusable"),
    ("failed or detached", "failed|detached"),
)
"""In words, and the values of the label `state`."""

BOARD = Board(
    uid="rmapd-daemon",
    title="rmapd / Daemon",
    description="Whether rmapd itself works: up, checking, without losses, and within its budget.",
    variables=HOSTS,
    annotations=(VIOLATIONS, STARTS),
    rows=(
        Row(
            "Availability",
            (
                Panel(
                    "stat",
                    "Up",
                    "Whether Prometheus can scrape the daemon.",
                    "short",
                    (Query(f"min(up{{{CHOSEN}}})"),),
                    "RmapdDown",
                    GOOD_IS_ONE,
                    "red",
                    _UP,
                    3,
                    5,
                ),
                Panel(
                    "stat",
                    "Gate",
                    "1 while kernel events are being recorded.",
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
                    "Last read of the tables",
                    "Seconds since the checker last read the kernel's tables. It does so every "
                    "second; if it stops, the web server still answers.",
                    "s",
                    (Query(f"max(time() - rmapd_snapshot_time_seconds{{{CHOSEN}}})"),),
                    "RmapdStalled",
                    (("read_late_seconds", "orange"), ("read_stalled_seconds", "red")),
                    span=3,
                    height=5,
                ),
                Panel(
                    "stat",
                    "Configuration",
                    "Whether the last reload was taken over (the worst host). Refused: the "
                    "settings of before are in force, and the next start will fail.",
                    "short",
                    (Query(f"min(rmapd_config_last_reload_successful{{{CHOSEN}}})"),),
                    "RmapdConfigReloadFailed",
                    GOOD_IS_ONE,
                    "orange",
                    {"0": "refused", "1": "in force"},
                    3,
                    5,
                ),
                Panel(
                    "stat",
                    "Uptime",
                    "Age of the process. All of its counts start at zero with it.",
                    "s",
                    (Query(f"min(time() - (process_start_time_seconds{{{CHOSEN}}} {_OURS}))"),),
                    span=4,
                    height=5,
                ),
                Panel(
                    "stat",
                    "Fidelity",
                    "The hosts at each fidelity: full, sampled (some of the windows), owner "
                    "(without rwsem programs) or migration (only the ledger).",
                    "short",
                    (Query(f"count by (level) (rmapd_fidelity{{{CHOSEN}}} == 1)", "{{level}}"),),
                    span=4,
                    height=5,
                ),
                Panel(
                    "stat",
                    "Version",
                    "The versions in use, with the number of hosts of each.",
                    "short",
                    (Query(f"count by (version) (rmapd_build_info{{{CHOSEN}}})", "{{version}}"),),
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
                            "sum by (<<target>>, kind)"
                            f" (increase(rmapd_events_lost_total{{{CHOSEN}}}[$__rate_interval]))",
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
                            "sum by (<<target>>, probe_object)"
                            " (increase(rmapd_probe_missed_runs_total"
                            f"{{{CHOSEN}}}[$__rate_interval]))",
                            "{{instance}} {{probe_object}}",
                        ),
                    ),
                    "RmapdChecksUnverifiable",
                    ((1, "orange"),),
                ),
                Panel(
                    "graph",
                    "Hooks by what became of them",
                    "The attach plan has the names of all kernels. Not in this kernel, or refused "
                    "by it, is no fault; failed and detached are.",
                    "short",
                    tuple(
                        Query(
                            f'sum by (<<target>>) (rmapd_hooks{{{CHOSEN}, state=~"{states}"}})',
                            f"{{{{instance}}}} {words}",
                        )
                        for words, states in _HOOKS
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
                            f"sum by (<<target>>) (rmapd_invariant_coverage{{{CHOSEN}}} == bool 1)",
                            "{{instance}} full",
                        ),
                        Query(
                            "sum by (<<target>>)"
                            f" (rmapd_invariant_coverage{{{CHOSEN}}} == bool 0.5)",
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
                            f"process_resident_memory_bytes{{{CHOSEN}}}"
                            f" and on (<<target>>) rmapd_gate_open{{{CHOSEN}}}",
                            "{{instance}} resident",
                        ),
                        Query(f"rmapd_peak_rss_bytes{{{CHOSEN}}}", "{{instance}} peak"),
                    ),
                    "",
                    (("resident_bytes", "orange"),),
                ),
                Panel(
                    "graph",
                    "CPU time of the process",
                    "Share of one CPU, with the programs that the oracle (page-table walker) runs.",
                    "percentunit",
                    (
                        Query(
                            f"rate(process_cpu_seconds_total{{{CHOSEN}}}[$__rate_interval])"
                            f" {_OURS}",
                            "{{instance}} user and system",
                        ),
                        Query(
                            f"rate(rmapd_user_seconds_total{{{CHOSEN}}}[$__rate_interval])",
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
                    (Query(f"rmapd_tick_longest_gap_seconds{{{CHOSEN}}}", "{{instance}}"),),
                    "RmapdStalled",
                    (("tick_gap_seconds", "orange"),),
                ),
                Panel(
                    "graph",
                    "Time per run, the ten slowest hooks",
                    "By the kernel's BPF statistics, which include the time to read the clock.",
                    "s",
                    (
                        Query(
                            "topk(10, sum by (hook)"
                            f" (rate(rmapd_probe_run_seconds_total{{{CHOSEN}}}[$__rate_interval]))"
                            " / (sum by (hook)"
                            f" (rate(rmapd_probe_runs_total{{{CHOSEN}}}[$__rate_interval])) > 0))",
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
                    (Query(f"process_open_fds{{{CHOSEN}}} {_OURS}", "{{instance}}"),),
                    span=8,
                ),
                Panel(
                    "graph",
                    "Series per scrape",
                    "Fewer than <<thresholds.series_per_scrape>> by design, and constant from the "
                    "first scrape on.",
                    "short",
                    (Query(f"scrape_samples_scraped{{{CHOSEN}}}", "{{instance}}"),),
                    "",
                    (("series_per_scrape", "orange"),),
                    span=8,
                ),
                Panel(
                    "graph",
                    "Duration of a scrape",
                    "A scrape reads the last snapshot; the checker makes one a second at most.",
                    "s",
                    (Query(f"scrape_duration_seconds{{{CHOSEN}}}", "{{instance}}"),),
                    span=8,
                ),
            ),
        ),
    ),
)
