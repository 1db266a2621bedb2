"""Prometheus metrics from a snapshot. Labels come from closed sets; what can be seen here is there from the first scrape, at zero.

A host has under 700 series (docs/FLEET.md): times of programs and windows only where they are hooked, and buckets no finer than a question
needs them."""

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
from tracer.results.history import HistoryPoint
from tracer.results.snapshot import Snapshot
from tracer.results.standing import Standing
from tracer.results.standing_facts import standing
from tracer.tables.histogram import Histogram

_WALKS = ("anon", "file", "ksm")
_NOTHING = Histogram()
_NO_RUNS = RunStatistics(0, 0, 0.0, 0)
_ENTRY_POWERS = range(15, 37, 3)  # 33 µs to 69 s
_WINDOW_POWERS = (20,)  # 1 ms: how often each of some twenty functions is slow
_LOCK_POWERS = (10, 15, 20, 25, 28, 31)  # 1 µs, 33 µs, 1 ms, 34 ms, 268 ms, 2.1 s
_WALK_POWERS = (1, 4, 7, 10)  # up to 1, 15, 127, 1,023 VMAs
_LOCK_CLASSES = {
    "i_mmap": ("i_mmap", "i_mmap2"),
    "anon": ("anon", "anon2"),
    "other": ("vma", "i_rwsem", "invalidate", "hugetlb", "other"),
}
"""Label -> lock classes of windows. mmap and mmap2 are left out: the tracepoints of mmap_lock see them everywhere."""


class SnapshotCollector(Collector):
    """Collects from whatever snapshot is current; that the gate is not open while there is none."""

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
        snapshot = self._current()
        yield _gauge(
            "rmapd_gate_open",
            "1 while events are booked.",
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
        yield from _books(snapshot)
        yield from _histograms(snapshot)
        yield from _self(snapshot)


def _counter(
    name: str, text: str, labels: tuple[str, ...], values: Iterable[tuple[tuple[str, ...], float]]
) -> CounterMetricFamily:
    family = CounterMetricFamily(name, text, labels=labels)
    for label_values, value in values:
        family.add_metric(label_values, value)
    return family


def _gauge(
    name: str, text: str, labels: tuple[str, ...], values: Iterable[tuple[tuple[str, ...], float]]
) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, text, labels=labels)
    for label_values, value in values:
        family.add_metric(label_values, value)
    return family


def _standing(stands: Standing) -> Iterator[GaugeMetricFamily]:
    text = "How it stands, as the page says it: 0 green, 1 amber (not all is known, or something is suspect), 2 red (violated)."
    yield _gauge("rmapd_standing", text, (), [((), stands.colour.gauge)])


def _invariants(s: Snapshot) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
    each = tuple(s.invariants)
    checked = (((i, v.value), s.checked(i, v)) for i in each for v in Verdict)
    yield _counter(
        "rmapd_checks", "Checks by invariant and verdict.", ("invariant", "verdict"), checked
    )
    violated = (((i,), s.checked(i, Verdict.VIOLATED)) for i in each)
    yield _counter("rmapd_violations", "Proven violations by invariant.", ("invariant",), violated)
    text = (
        "How far this kernel and this run let an invariant be checked: 1 full, 0.5 partial, 0 none."
    )
    yield _gauge(
        "rmapd_invariant_coverage",
        text,
        ("invariant",),
        (((i,), s.coverage[i][0].gauge) for i in each),
    )


def _hooks(s: Snapshot) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
    names = [h.hook.name for h in s.hooks]
    on = {h.hook.name for h in s.hooks if h.on}
    yield _gauge(
        "rmapd_probe_attached",
        "1 where the hook is attached.",
        ("hook",),
        (((n,), float(n in on)) for n in names),
    )
    loaded = on | {
        h.hook.name for h in s.hooks if h.state in (HookState.PAUSED, HookState.DETACHED)
    }
    stats = {n: s.statistics.get(n, _NO_RUNS) for n in names if n in loaded}
    seconds = (((n,), one.seconds) for n, one in stats.items())
    yield _counter(
        "rmapd_probe_run_seconds",
        "Time in the hook's BPF program, by the kernel's account.",
        ("hook",),
        seconds,
    )
    runs = (((n,), float(one.runs)) for n, one in stats.items())
    yield _counter(
        "rmapd_probe_runs",
        "Runs of the hook's BPF program, by the kernel's account.",
        ("hook",),
        runs,
    )
    missed = Counter({h.probe_object: 0 for h in s.hooks})
    for h in s.hooks:  # also of those that were taken away: the count of a probe object never falls
        missed[h.probe_object] += s.statistics.get(h.hook.name, _NO_RUNS).missed
    text = "Runs of a probe object's BPF programs that the kernel left out because the program was running already."
    yield _counter(
        "rmapd_probe_missed_runs",
        text,
        ("probe_object",),
        (((probe_object,), float(count)) for probe_object, count in missed.items()),
    )


def _windows(s: Snapshot) -> dict[str, Histogram]:
    """Times by function, of those that are hooked here or were seen all the same."""
    hooked = {
        h.hook.window for h in s.hooks if h.on or h.state in (HookState.PAUSED, HookState.DETACHED)
    }
    return {name: times for name, times in s.window_times.items() if name in hooked or times.count}


def _books(s: Snapshot) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
    times = _windows(s)
    windows = (((name,), histogram.count) for name, histogram in times.items())
    yield _counter("rmapd_windows", "Windows booked, by function.", ("function",), windows)
    text = "Windows that were not booked because windows are sampled; those inside of them, too."
    yield _counter(
        "rmapd_windows_unsampled", text, (), [((), float(sum(s.windows_unsampled.values())))]
    )
    distinct = Counter(ruled.protocol.window for ruled in s.protocols)
    seen = (((name,), float(distinct[name])) for name in times)
    yield _gauge("rmapd_protocols", "Distinct protocols seen, by function.", ("function",), seen)
    yield _gauge(
        "rmapd_migration_entries_outstanding",
        "Migration entries booked and not yet settled.",
        (),
        [((), s.outstanding)],
    )
    text = "Age of the oldest migration entry outstanding."
    yield _gauge("rmapd_migration_oldest_entry_seconds", text, (), [((), s.oldest_entry_seconds)])
    c = s.counters
    entries = (
        ("inserted", "ENTRIES_RECORDED"),
        ("copied", "ENTRIES_COPIED"),
        ("removed", "ENTRIES_REMOVED"),
        ("removed_unbooked", "REMOVALS_UNRECORDED"),
    )
    values = [((event,), c.get(name, 0)) for event, name in entries]
    decided = s.decided
    values += [
        (("cleared_by_oracle",), decided["cleared"]),
        (("left_behind",), decided["violated"] + decided["suspect"]),
        (("unverifiable",), decided["unverifiable"]),
    ]
    text = "Migration entries by what happened to them: inserted + copied = removed + the last three + outstanding."
    yield _counter("rmapd_migration_entries", text, ("event",), values)
    asked = (((kind,), s.oracle.get(kind, 0)) for kind in ("asked", "sweeps"))
    yield _counter(
        "rmapd_oracle_questions",
        "Addresses asked about, and sweeps of all page tables.",
        ("kind",),
        asked,
    )
    text = "Events lost, by book. A lost event turns checks unverifiable, never into a violation."
    yield _counter(
        "rmapd_events_lost", text, ("book",), (((book,), value) for book, value in s.lost.items())
    )


def _add(
    family: HistogramMetricFamily,
    labels: tuple[str, ...],
    histogram: Histogram,
    powers: Sequence[int],
) -> None:
    family.add_metric(labels, histogram.buckets_seconds(powers), histogram.sum_ns / 1e9)


def _histograms(s: Snapshot) -> Iterator[HistogramMetricFamily]:
    h = s.histograms
    entry = HistogramMetricFamily(
        "rmapd_migration_entry_seconds", "Insertion to removal of a migration entry."
    )
    _add(entry, (), h.get("HIST_MIGRATION_ENTRY", _NOTHING), _ENTRY_POWERS)
    yield entry
    window = HistogramMetricFamily(
        "rmapd_window_seconds", "Duration of a window.", labels=("function",)
    )
    for function, histogram in _windows(s).items():
        _add(window, (function,), histogram, _WINDOW_POWERS)
    yield window
    for what, text, of_class in (
        (
            "wait",
            "Time from asking for a lock to having it: mmap_lock everywhere, other classes inside windows.",
            s.lock_waits,
        ),
        (
            "hold",
            "Time a lock was held: mmap_lock everywhere (one in seven is timed), other classes inside windows.",
            s.lock_holds,
        ),
    ):
        family = HistogramMetricFamily(f"rmapd_lock_{what}_seconds", text, labels=("class", "mode"))
        for mode in ("read", "write"):
            _add(
                family,
                ("mmap_lock", mode),
                h.get(f"HIST_MMAP_{what.upper()}_{mode.upper()}", _NOTHING),
                _LOCK_POWERS,
            )
        for name, classes in _LOCK_CLASSES.items():
            _add(
                family,
                (name, "any"),
                sum((of_class.get(one, _NOTHING) for one in classes), _NOTHING),
                _LOCK_POWERS,
            )
        yield family
    walk = HistogramMetricFamily(
        "rmapd_rmap_walk_vmas", "VMAs visited by an rmap walk.", labels=("kind",)
    )
    for kind in _WALKS:
        visited = h.get(f"HIST_WALK_{kind.upper()}", _NOTHING)
        walk.add_metric((kind,), visited.buckets(_WALK_POWERS), float(visited.sum_ns))
    yield walk


def _self(s: Snapshot) -> Iterator[CounterMetricFamily | GaugeMetricFamily | InfoMetricFamily]:
    level = (((f,), float(f == s.fidelity)) for f in LEVELS)
    yield _gauge("rmapd_fidelity", "1 for the fidelity in force.", ("level",), level)
    changes = (((way,), float(s.fidelity_changes.get(way, 0))) for way in ("lower", "raise"))
    yield _counter(
        "rmapd_fidelity_changes",
        "Decisions of the governor, by direction.",
        ("direction",),
        changes,
    )
    yield _gauge(
        "rmapd_snapshot_time_seconds",
        "Unix time at which the judge last looked at the books.",
        (),
        [((), s.taken_seconds)],
    )
    yield _gauge("rmapd_cpus", "CPUs of this machine that are online.", (), [((), float(s.cpus))])
    verdicts = Counter(v.first.verdict for v in s.violations.values())
    found = (((v.value,), float(verdicts[v])) for v in (Verdict.VIOLATED, Verdict.SUSPECT))
    yield _gauge("rmapd_signatures", "Distinct defects seen, by verdict.", ("verdict",), found)
    text = (
        "Findings of signatures beyond the bound on them: counted, without evidence of their own."
    )
    yield _counter("rmapd_findings_unsigned", text, (), [((), float(sum(s.rest.values())))])
    if s.store:
        yield _gauge(
            "rmapd_store_writable",
            "1 where what is found can be stored.",
            (),
            [((), float(not s.store.reason))],
        )
        text = "Findings that are counted in memory and not stored yet."
        yield _gauge("rmapd_store_unwritten_findings", text, (), [((), float(s.store.unwritten))])
        yield _counter(
            "rmapd_store_failures",
            "Attempts to write the store that failed.",
            (),
            [((), float(s.store.failures))],
        )
        text = "Signatures that the store has forgotten for size or age."
        yield _counter(
            "rmapd_store_forgotten_signatures", text, (), [((), float(s.store.forgotten))]
        )
        yield _counter(
            "rmapd_store_write_seconds",
            "Time the judge spent writing the store.",
            (),
            [((), s.store.seconds)],
        )
    yield _gauge(
        "rmapd_oracle_ready",
        "1 where the page-table oracle is calibrated.",
        (),
        [((), float(not s.oracle_reason))],
    )
    sent = (((result,), count) for result, count in s.otlp.items())
    yield _counter(
        "rmapd_otlp_records",
        "Violations for the OTLP collector, by what became of them; none where there is none.",
        ("result",),
        sent,
    )
    yield _counter(
        "rmapd_user_seconds",
        "User CPU time of the daemon since the gate opened.",
        (),
        [((), s.user_seconds)],
    )
    yield _gauge(
        "rmapd_peak_rss_bytes", "Peak resident set of the daemon.", (), [((), s.peak_rss_bytes)]
    )
    yield InfoMetricFamily(
        "rmapd_build", "Version and kernel.", {"version": tracer.__version__, "kernel": s.kernel}
    )
