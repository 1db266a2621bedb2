"""Prometheus metrics of a snapshot.

Labels have a fixed set of values, and every series that can occur exists from the first scrape, at
zero. A host has under 1,100 series (docs/FLEET.md): times of programs and windows exist only for
hooked functions, and histograms have few buckets (histogram_metrics.py).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
)
from prometheus_client.registry import Collector

import tracer
from tracer.attach.plan import HookState
from tracer.bpf.programs import RunStatistics
from tracer.config import LEVELS
from tracer.invariants.verdict import Verdict
from tracer.outputs.audit_metrics import audit_metrics
from tracer.outputs.families import counter, gauge
from tracer.outputs.histogram_metrics import histogram_metrics, windows_by_function
from tracer.results.checks import FIRST_WALKS
from tracer.results.history import HistoryPoint
from tracer.results.hook_groups import GroupKind, group
from tracer.results.snapshot import Snapshot
from tracer.results.standing import Standing
from tracer.results.standing_facts import standing

_NO_RUNS = RunStatistics(0, 0, 0.0, 0)


class SnapshotCollector(Collector):
    """Collects the metrics of the current snapshot; without one only that the gate is closed.

    current: returns the snapshot. points: return the last counts. clock: Unix seconds.
    """

    def __init__(
        self,
        current: Callable[[], Snapshot | None],
        points: Callable[[], Sequence[HistoryPoint]] = tuple,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._current, self._points, self._clock = current, points, clock

    def collect(
        self,
    ) -> Iterable[
        CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily | InfoMetricFamily
    ]:
        """Return all metric families."""
        snapshot = self._current()
        yield gauge(
            "rmapd_gate_open",
            "1 while kernel events are being recorded.",
            (),
            [((), float(snapshot is not None and snapshot.gate_open))],
        )
        if snapshot is None:
            return
        yield from _standing(
            standing(snapshot, self._points(), self._clock() - snapshot.taken_seconds)
        )
        yield from _invariants(snapshot)
        yield from _hooks(snapshot)
        yield from _records(snapshot)
        yield from histogram_metrics(snapshot)
        yield from audit_metrics(snapshot.audit)
        yield from _self(snapshot)


def _standing(stands: Standing) -> Iterator[GaugeMetricFamily]:
    text = (
        "Standing, as on the status page: 0 green, 1 amber (something is not known or is suspect), "
        "2 red (violated)."
    )
    yield gauge("rmapd_standing", text, (), [((), stands.colour.gauge)])


def _invariants(s: Snapshot) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
    each = tuple(s.invariants)
    checked = (((i, v.value), s.checked(i, v)) for i in each for v in Verdict)
    yield counter(
        "rmapd_checks", "Checks by invariant and verdict.", ("invariant", "verdict"), checked
    )
    violated = (((i,), s.checked(i, Verdict.VIOLATED)) for i in each)
    yield counter("rmapd_violations", "Proven violations by invariant.", ("invariant",), violated)
    since = s.violated_since
    text = (
        "Unix time of the first proven violation since this machine booted, by this run and by "
        "earlier ones in the store; 0: none is known."
    )
    yield gauge(
        "rmapd_first_violation_time_seconds",
        text,
        ("invariant",),
        (((i,), since.get(i, 0.0)) for i in each),
    )
    text = "Coverage of the invariant on this kernel in this run: 1 full, 0.5 partial, 0 none."
    yield gauge(
        "rmapd_invariant_coverage",
        text,
        ("invariant",),
        (((i,), s.coverage[i][0].gauge) for i in each),
    )


def _hooks(s: Snapshot) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
    names = [h.hook.name for h in s.hooks]
    on = {h.hook.name for h in s.hooks if h.on}
    yield gauge(
        "rmapd_probe_attached",
        "1 if the hook is attached.",
        ("hook",),
        (((n,), float(n in on)) for n in names),
    )
    kinds = Counter({kind: 0 for kind in GroupKind})
    for one in group(s.hooks, s.invariants).groups:
        kinds[one.kind] += len(one.names)
    text = (
        "Hooks of the attach plan by what became of them: lacking and absent are functions that "
        "this kernel does not have, refused those that it lets no program be attached to."
    )
    yield gauge("rmapd_hooks", text, ("state",), (((kind.value,), n) for kind, n in kinds.items()))
    loaded = on | {
        h.hook.name for h in s.hooks if h.state in (HookState.PAUSED, HookState.DETACHED)
    }
    stats = {n: s.statistics.get(n, _NO_RUNS) for n in names if n in loaded}
    seconds = (((n,), one.seconds) for n, one in stats.items())
    yield counter(
        "rmapd_probe_run_seconds",
        "Run time of the hook's BPF programs, measured in samples and estimated between them.",
        ("hook",),
        seconds,
    )
    runs = (((n,), float(one.runs)) for n, one in stats.items())
    yield counter(
        "rmapd_probe_runs",
        "Runs of the hook's BPF programs, counted in samples and estimated between them.",
        ("hook",),
        runs,
    )
    yield counter(
        "rmapd_probe_measured_seconds",
        "Time for which the kernel measured BPF programs; rmapd_probe_run* are made from it.",
        (),
        [((), s.statistics_seconds)],
    )
    missed = Counter({h.probe_object: 0 for h in s.hooks})
    for h in s.hooks:  # detached hooks too: the count of a probe object must not fall
        missed[h.probe_object] += s.statistics.get(h.hook.name, _NO_RUNS).missed
    text = (
        "Runs of a probe object's BPF programs that the kernel skipped because the program was "
        "already running on that CPU."
    )
    yield counter(
        "rmapd_probe_missed_runs",
        text,
        ("probe_object",),
        (((probe_object,), float(count)) for probe_object, count in missed.items()),
    )


def _records(s: Snapshot) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
    times = windows_by_function(s)
    windows = (((name,), histogram.count) for name, histogram in times.items())
    yield counter("rmapd_windows", "Windows recorded, by function.", ("function",), windows)
    text = "Windows not recorded because of sampling, with those inside of them."
    yield counter(
        "rmapd_windows_unsampled", text, (), [((), float(sum(s.windows_unsampled.values())))]
    )
    distinct = Counter(ruled.protocol.window for ruled in s.protocols)
    seen = (((name,), float(distinct[name])) for name in times)
    yield gauge("rmapd_protocols", "Distinct protocols seen, by function.", ("function",), seen)
    yield gauge(
        "rmapd_migration_entries_outstanding",
        "Migration entries recorded that have neither been removed nor got a verdict.",
        (),
        [((), s.outstanding)],
    )
    text = "Age of the oldest outstanding migration entry."
    yield gauge("rmapd_migration_oldest_entry_seconds", text, (), [((), s.oldest_entry_seconds)])
    c = s.counters
    entries = (
        ("inserted", "ENTRIES_RECORDED"),
        ("copied", "ENTRIES_COPIED"),
        ("removed", "ENTRIES_REMOVED"),
        ("removed_unrecorded", "REMOVALS_UNRECORDED"),
    )
    values = [((event,), c.get(name, 0)) for event, name in entries]
    decided = s.decided
    values += [
        (("cleared_by_oracle",), decided["cleared"]),
        (("left_behind",), decided["violated"] + decided["suspect"]),
        (("unverifiable",), decided["unverifiable"]),
    ]
    text = (
        "Migration entries by event: inserted + copied = removed + cleared_by_oracle + left_behind "
        "+ unverifiable + outstanding. removed_unrecorded: removed, insertion not recorded."
    )
    yield counter("rmapd_migration_entries", text, ("event",), values)
    left = (((kind,), c.get(f"FIRST_WALKS_{kind.upper()}", 0)) for kind in FIRST_WALKS)
    text = (
        "First rmap walks of migrations by what they left: an emptied folio, or one that is still "
        "mapped, which is legal, by its kind (pinned: it may be pinned for DMA)."
    )
    yield counter("rmapd_first_walks", text, ("kind",), left)
    asked = (((kind,), s.oracle.get(kind, 0)) for kind in ("asked", "sweeps"))
    yield counter(
        "rmapd_oracle_questions",
        "Addresses read by the page-table walker (asked), and sweeps of all page tables.",
        ("kind",),
        asked,
    )
    text = "Events lost, by kind. A lost event makes checks unverifiable, never violated."
    yield counter(
        "rmapd_events_lost", text, ("kind",), (((kind,), value) for kind, value in s.lost.items())
    )


def _self(s: Snapshot) -> Iterator[CounterMetricFamily | GaugeMetricFamily | InfoMetricFamily]:
    level = (((f,), float(f == s.fidelity)) for f in LEVELS)
    yield gauge("rmapd_fidelity", "1 for the fidelity in force.", ("level",), level)
    directions = ("lower", "raise")
    changes = (((name,), float(s.fidelity_changes.get(name, 0))) for name in directions)
    yield counter(
        "rmapd_fidelity_changes",
        "Changes of fidelity by the governor, by direction.",
        ("direction",),
        changes,
    )
    yield gauge(
        "rmapd_snapshot_time_seconds",
        "Unix time at which the checker last read the kernel's tables.",
        (),
        [((), s.taken_seconds)],
    )
    yield gauge(
        "rmapd_budget_ratio",
        "Share of the time of all CPUs that BPF programs may take, by the configuration.",
        (),
        [((), s.budget)],
    )
    yield gauge(
        "rmapd_max_entry_age_seconds",
        "The age limit of a migration entry, by the configuration.",
        (),
        [((), s.age_limit_seconds)],
    )
    yield gauge(
        "rmapd_config_last_reload_successful",
        "1 if the last reading of the configuration was taken over.",
        (),
        [((), float(s.config_read.successful))],
    )
    yield gauge(
        "rmapd_config_last_reload_success_timestamp_seconds",
        "Unix time of the last reading of the configuration that was taken over.",
        (),
        [((), s.config_read.success_seconds)],
    )
    yield gauge("rmapd_cpus", "Online CPUs of this machine.", (), [((), float(s.cpus))])
    verdicts = Counter(v.first.verdict for v in s.violations.values())
    found = (((v.value,), float(verdicts[v])) for v in (Verdict.VIOLATED, Verdict.SUSPECT))
    yield gauge("rmapd_signatures", "Distinct defects seen, by verdict.", ("verdict",), found)
    text = "Findings beyond the limit on signatures: they are counted, without evidence."
    rest = float(sum(s.rest.values()))
    yield counter("rmapd_findings_without_evidence", text, (), [((), rest)])
    if s.store:
        yield gauge(
            "rmapd_store_writable",
            "1 if findings can be stored.",
            (),
            [((), float(not s.store.reason))],
        )
        text = "Findings counted in memory and not stored yet."
        yield gauge("rmapd_store_unwritten_findings", text, (), [((), float(s.store.unwritten))])
        yield counter(
            "rmapd_store_failures",
            "Failed attempts to write the store.",
            (),
            [((), float(s.store.failures))],
        )
        text = "Signatures deleted from the store for size or age; their counts are kept."
        deleted = float(s.store.forgotten)
        yield counter("rmapd_store_deleted_signatures", text, (), [((), deleted)])
        yield counter(
            "rmapd_store_write_seconds",
            "Time that the checking thread spent writing the store.",
            (),
            [((), s.store.seconds)],
        )
    yield gauge(
        "rmapd_oracle_ready",
        "1 if the oracle (page-table walker) is calibrated.",
        (),
        [((), float(not s.oracle_reason))],
    )
    sent = (((result,), count) for result, count in s.otlp.items())
    yield counter(
        "rmapd_otlp_records",
        "Violations for the OTLP collector, by result; no series without a collector.",
        ("result",),
        sent,
    )
    yield counter(
        "rmapd_user_seconds",
        "User CPU time of the daemon since the gate opened.",
        (),
        [((), s.user_seconds)],
    )
    yield gauge(
        "rmapd_peak_rss_bytes", "Peak resident set of the daemon.", (), [((), s.peak_rss_bytes)]
    )
    yield gauge(
        "rmapd_tick_longest_gap_seconds",
        "Longest time between two ticks of the checker, which are due once a second.",
        (),
        [((), s.longest_tick_gap_seconds)],
    )
    yield InfoMetricFamily(
        "rmapd_build", "Version and kernel.", {"version": tracer.__version__, "kernel": s.kernel}
    )
