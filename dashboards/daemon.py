"""The daemon's own health: is it there, does it judge, what does it lose, what does it use."""

from __future__ import annotations

from dashboards.board import GOOD_IS_ONE, HOST, KERNEL, Board, Panel, Query, Row

_H = 'instance=~"$host"'
_OURS = (
    "and on (job, instance) rmapd_gate_open"  # process_* is exported by others on the host as well
)
_UP = {"0": "no", "1": "yes"}

BOARD = Board(
    uid="rmapd-daemon",
    title="rmapd / Daemon",
    description="Whether rmapd itself is well: up, judging, complete, and within its budget.",
    variables=(KERNEL, HOST),
    rows=(
        Row(
            "Is it there",
            (
                Panel(
                    "stat",
                    "Answers",
                    "Whether Prometheus could scrape it.",
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
                    "1 while events are booked.",
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
                    "Last look at the books",
                    "How long ago the judging loop last looked. It does so every second; the web server would go on answering without it.",
                    "s",
                    (Query(f"max(time() - rmapd_snapshot_time_seconds{{{_H}}})"),),
                    "RmapdStalled",
                    ((10, "orange"), (60, "red")),
                    span=4,
                    height=5,
                ),
                Panel(
                    "stat",
                    "Up since",
                    "Age of the process. All its counts begin with it.",
                    "s",
                    (Query(f"min(time() - (process_start_time_seconds{{{_H}}} {_OURS}))"),),
                    span=4,
                    height=5,
                ),
                Panel(
                    "stat",
                    "Fidelity",
                    "How much is probed: full, owner (no rwsems), migration (the ledger alone).",
                    "short",
                    (Query(f"count by (level) (rmapd_fidelity{{{_H}}} == 1)", "{{level}}"),),
                    span=4,
                    height=5,
                ),
                Panel(
                    "stat",
                    "Version",
                    "Versions in use, and how many hosts have each.",
                    "short",
                    (Query(f"count by (version) (rmapd_build_info{{{_H}}})", "{{version}}"),),
                    span=4,
                    height=5,
                ),
            ),
        ),
        Row(
            "What it loses",
            (
                Panel(
                    "graph",
                    "Events lost by book",
                    "A lost event turns checks unverifiable, never into a violation. It also hides what it was about.",
                    "short",
                    (
                        Query(
                            f"sum by (instance, book) (increase(rmapd_events_lost_total{{{_H}}}[$__rate_interval]))",
                            "{{instance}} {{book}}",
                        ),
                    ),
                    "RmapdEventsLost",
                    ((1, "orange"),),
                ),
                Panel(
                    "graph",
                    "Runs left out by the kernel, by probe object",
                    "The kernel skips a program that already runs on this CPU: lazily preempting kernels do so often.",
                    "short",
                    (
                        Query(
                            f"sum by (instance, probe_object) (increase(rmapd_probe_missed_runs_total{{{_H}}}[$__rate_interval]))",
                            "{{instance}} {{probe_object}}",
                        ),
                    ),
                    "RmapdChecksUnverifiable",
                    ((1, "orange"),),
                ),
                Panel(
                    "graph",
                    "Hooks attached",
                    "Of the attach plan, which has every name that any kernel has: never all of them.",
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
                    "In full, and in part.",
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
            "What it uses",
            (
                Panel(
                    "graph",
                    "Memory",
                    "Resident now, and the peak since its start. The maps in the kernel are not in it.",
                    "bytes",
                    (
                        Query(
                            f"process_resident_memory_bytes{{{_H}}} and on (job, instance) rmapd_gate_open{{{_H}}}",
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
                    "Seconds per second, of one CPU. Includes the programs that the oracle runs on demand.",
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
                    "Time per run of a hook, the ten longest",
                    "By the kernel's own account, which adds its clock reads.",
                    "s",
                    (
                        Query(
                            f"topk(10, sum by (hook) (rate(rmapd_probe_run_seconds_total{{{_H}}}[$__rate_interval]))"
                            f" / (sum by (hook) (rate(rmapd_probe_runs_total{{{_H}}}[$__rate_interval])) > 0))",
                            "{{hook}}",
                        ),
                    ),
                    "RmapdOverheadOverBudget",
                ),
                Panel(
                    "graph",
                    "Open files",
                    "BPF programs, links and maps are file descriptors. It does not grow after the gate is open.",
                    "short",
                    (Query(f"process_open_fds{{{_H}}} {_OURS}", "{{instance}}"),),
                ),
                Panel(
                    "graph",
                    "Series per scrape",
                    "Under 700 by design, and the same from the first scrape to the last.",
                    "short",
                    (Query(f'scrape_samples_scraped{{job="rmapd", {_H}}}', "{{instance}}"),),
                    "",
                    ((700, "red"),),
                ),
                Panel(
                    "graph",
                    "Duration of a scrape",
                    "The scrape reads what the judging loop left: it costs the loop nothing.",
                    "s",
                    (Query(f'scrape_duration_seconds{{job="rmapd", {_H}}}', "{{instance}}"),),
                ),
            ),
        ),
    ),
)
