"""Prometheus metrics of a snapshot.

Labels have a fixed set of values, and every series that can occur exists from the first scrape, at
zero. A host has under 1,100 series (docs/FLEET.md): times of programs and windows exist only for
hooked functions, and histograms have buckets of a factor of two only where a panel or an alert
takes quantiles of them.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

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
from tracer.results.checks import FIRST_WALKS
from tracer.results.history import HistoryPoint
from tracer.results.hook_groups import GroupKind, group
from tracer.results.snapshot import Snapshot
from tracer.results.standing import Standing
from tracer.results.standing_facts import standing
from tracer.tables.histogram import Histogram

_WALKS = ("anon", "file", "ksm")
_NOTHING = Histogram()
_NO_RUNS = RunStatistics(0, 0, 0.0, 0)
_ENTRY_POWERS = range(15, 37)  # 33 µs to 69 s
_WINDOW_POWERS = (20,)  # 1 ms: how often each of some twenty functions is slow
_LOCK_POWERS = (10, 12, 14, 16, *range(18, 32))  # by four from 1 µs, by two from 262 µs to 2.1 s
_WALK_POWERS = range(1, 11)  # up to 1, 3, 7 … 1,023 VMAs
_LOCK_CLASSES = {
    "i_mmap": ("i_mmap", "i_mmap2"),
    "anon": ("anon", "anon2"),
    "other": ("vma", "i_rwsem", "invalidate", "hugetlb", "other"),
}
"""Label -> lock classes of windows.

mmap and mmap2 are left out: the tracepoints of mmap_lock count them in and outside of windows.
"""


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
        yield from _histograms(snapshot)
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


def _windows(s: Snapshot) -> dict[str, Histogram]:
    """Return the durations of windows by function, for functions that are hooked or were seen."""
    hooked = {
        h.hook.window for h in s.hooks if h.on or h.state in (HookState.PAUSED, HookState.DETACHED)
    }
    return {name: times for name, times in s.window_times.items() if name in hooked or times.count}


def _records(s: Snapshot) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
    times = _windows(s)
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


def _add(
    family: HistogramMetricFamily,
    labels: tuple[str, ...],
    histogram: Histogram,
    powers: Sequence[int],
) -> None:
    family.add_metric(labels, histogram.buckets_seconds(powers), histogram.sum_ns / 1e9)


def _by_class(
    s: Snapshot, what: str, of_class: Mapping[str, Histogram]
) -> dict[tuple[str, ...], Histogram]:
    """Return the times of locks by the labels class and mode. what: WAIT or HOLD."""
    found: dict[tuple[str, ...], Histogram] = {
        ("mmap_lock", mode): s.histograms.get(f"HIST_MMAP_{what}_{mode.upper()}", _NOTHING)
        for mode in ("read", "write")
    }
    found |= {
        (name, "any"): sum((of_class.get(one, _NOTHING) for one in classes), _NOTHING)
        for name, classes in _LOCK_CLASSES.items()
    }
    return found


def _lock_times(
    name: str, text: str, times: Mapping[tuple[str, ...], Histogram]
) -> HistogramMetricFamily:
    family = HistogramMetricFamily(name, text, labels=("class", "mode"))
    for labels, histogram in times.items():
        _add(family, labels, histogram, _LOCK_POWERS)
    return family


def _histograms(s: Snapshot) -> Iterator[CounterMetricFamily | HistogramMetricFamily]:
    h = s.histograms
    entry = HistogramMetricFamily(
        "rmapd_migration_entry_seconds", "Time from insertion to removal of a migration entry."
    )
    _add(entry, (), h.get("HIST_MIGRATION_ENTRY", _NOTHING), _ENTRY_POWERS)
    yield entry
    window = HistogramMetricFamily(
        "rmapd_window_seconds", "Duration of a window.", labels=("function",)
    )
    for function, histogram in _windows(s).items():
        _add(window, (function,), histogram, _WINDOW_POWERS)
    yield window
    waits = _by_class(s, "WAIT", s.lock_waits)
    yield counter(
        "rmapd_lock_without_wait",
        "Acquisitions of a lock that did not wait: mmap_lock everywhere (one in seven is counted, "
        "for seven), other classes inside windows.",
        ("class", "mode"),
        ((labels, one.zeros) for labels, one in waits.items()),
    )
    yield _lock_times(
        "rmapd_lock_wait_seconds",
        "Time from request to acquisition of a lock, where it was not free: mmap_lock everywhere, "
        "other classes inside windows.",
        {labels: one.above_zero for labels, one in waits.items()},
    )
    yield _lock_times(
        "rmapd_lock_hold_seconds",
        "Time a lock was held: mmap_lock everywhere (one in seven is timed), other classes inside "
        "windows.",
        _by_class(s, "HOLD", s.lock_holds),
    )
    walk = HistogramMetricFamily(
        "rmapd_rmap_walk_vmas", "VMAs visited by an rmap walk.", labels=("kind",)
    )
    for kind in _WALKS:
        visited = h.get(f"HIST_WALK_{kind.upper()}", _NOTHING)
        walk.add_metric((kind,), visited.buckets(_WALK_POWERS), float(visited.sum_ns))
    yield walk


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
