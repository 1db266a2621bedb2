"""Prometheus metrics from a snapshot. Labels come from closed sets; everything is there from the first scrape, at zero."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, InfoMetricFamily
from prometheus_client.registry import Collector

import tracer
from tracer.histogram import Histogram
from tracer.plan import State
from tracer.snapshot import Snapshot
from tracer.verdict import Verdict

WINDOWS = (
    "__vma_adjust", "vma_expand", "vma_shrink", "commit_merge", "__split_vma", "do_brk_flags", "copy_vma", "move_page_tables",
    "expand_downwards", "anon_vma_clone", "anon_vma_fork", "dup_mmap", "rmap_walk_anon", "rmap_walk_file",
)  # fmt: skip
"""The window functions whose series exist from the start; this version has no window hooks, so they stay at zero."""
_CLASSES = ("mmap_lock", "i_mmap", "anon_vma")
_FIDELITIES = ("full", "owner", "migration")
_WALKS = ("anon", "file", "ksm")
_NOTHING = Histogram()


class SnapshotCollector(Collector):
    """Collects from whatever snapshot is current; nothing while there is none."""

    def __init__(self, current: Callable[[], Snapshot | None]) -> None:
        self._current = current

    def collect(self) -> Iterable[CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily | InfoMetricFamily]:
        snapshot = self._current()
        if snapshot is None:
            return
        yield from _invariants(snapshot)
        yield from _hooks(snapshot)
        yield from _books(snapshot)
        yield from _histograms(snapshot)
        yield from _self(snapshot)


def _counter(name: str, text: str, labels: tuple[str, ...], values: Iterable[tuple[tuple[str, ...], float]]) -> CounterMetricFamily:
    family = CounterMetricFamily(name, text, labels=labels)
    for label_values, value in values:
        family.add_metric(label_values, value)
    return family


def _gauge(name: str, text: str, labels: tuple[str, ...], values: Iterable[tuple[tuple[str, ...], float]]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, text, labels=labels)
    for label_values, value in values:
        family.add_metric(label_values, value)
    return family


def _invariants(s: Snapshot) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
    each = tuple(s.invariants)
    checked = (((i, v.value), s.checked(i, v)) for i in each for v in Verdict)
    yield _counter("rmapd_checks", "Checks by invariant and verdict.", ("invariant", "verdict"), checked)
    violated = (((i,), s.checked(i, Verdict.VIOLATED)) for i in each)
    yield _counter("rmapd_violations", "Proven violations by invariant.", ("invariant",), violated)
    text = "How far this kernel and this run let an invariant be checked: 1 full, 0.5 partial, 0 none."
    yield _gauge("rmapd_invariant_coverage", text, ("invariant",), (((i,), s.coverage[i][0].gauge) for i in each))


def _hooks(s: Snapshot) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
    names = [h.hook.name for h in s.hooks]
    on = {h.hook.name for h in s.hooks if h.state in (State.ATTACHED, State.SUBSTITUTED)}
    yield _gauge("rmapd_probe_attached", "1 where the hook is attached.", ("hook",), (((n,), float(n in on)) for n in names))
    stats = s.statistics
    seconds = (((n,), stats[n].seconds if n in stats else 0.0) for n in names)
    yield _counter("rmapd_probe_run_seconds", "Time in the hook's BPF program, by the kernel's account.", ("hook",), seconds)
    runs = (((n,), stats[n].runs if n in stats else 0) for n in names)
    yield _counter("rmapd_probe_runs", "Runs of the hook's BPF program, by the kernel's account.", ("hook",), runs)
    missed = (((n,), stats[n].missed if n in stats else 0) for n in names)
    yield _counter("rmapd_probe_missed_runs", "Runs that the kernel left out because the program was running already.", ("hook",), missed)


def _books(s: Snapshot) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
    yield _counter("rmapd_windows", "Windows seen, by function.", ("function",), (((f,), 0.0) for f in WINDOWS))
    yield _gauge("rmapd_protocols", "Distinct protocols seen, by function.", ("function",), (((f,), 0.0) for f in WINDOWS))
    yield _gauge("rmapd_migration_entries_outstanding", "Migration entries booked and not yet settled.", (), [((), s.outstanding)])
    text = "Age of the oldest migration entry outstanding."
    yield _gauge("rmapd_migration_oldest_entry_seconds", text, (), [((), s.oldest_entry_seconds)])
    c = s.counters
    entries = (
        ("inserted", "ENTRIES_BOOKED"),
        ("copied", "ENTRIES_COPIED"),
        ("removed", "ENTRIES_REMOVED"),
        ("removed_unbooked", "REMOVALS_UNBOOKED"),
    )
    values = [((event,), c.get(name, 0)) for event, name in entries] + [(("cleared_by_oracle",), s.oracle.get("cleared", 0))]
    yield _counter("rmapd_migration_entries", "Migration entries by what happened to them.", ("event",), values)
    asked = (((kind,), s.oracle.get(kind, 0)) for kind in ("asked", "sweeps"))
    yield _counter("rmapd_oracle_questions", "Addresses asked about, and sweeps of all page tables.", ("kind",), asked)
    text = "Events lost, by book. A lost event turns checks unverifiable, never into a violation."
    yield _counter("rmapd_events_lost", text, ("book",), (((book,), value) for book, value in s.lost.items()))


def _add(family: HistogramMetricFamily, labels: tuple[str, ...], histogram: Histogram) -> None:
    family.add_metric(labels, histogram.buckets_seconds(), histogram.sum_ns / 1e9)


def _histograms(s: Snapshot) -> Iterator[HistogramMetricFamily]:
    h = s.histograms
    entry = HistogramMetricFamily("rmapd_migration_entry_seconds", "Insertion to removal of a migration entry.")
    _add(entry, (), h.get("HIST_MIGRATION_ENTRY", _NOTHING))
    yield entry
    window = HistogramMetricFamily("rmapd_window_seconds", "Duration of a window.", labels=("function",))
    for function in WINDOWS:
        _add(window, (function,), _NOTHING)
    yield window
    for what, text in (("wait", "Time from asking for a lock to having it."), ("hold", "Time a lock was held.")):
        family = HistogramMetricFamily(f"rmapd_lock_{what}_seconds", text, labels=("class", "mode"))
        for name in _CLASSES:
            for mode in ("read", "write"):
                book = f"HIST_MMAP_{what.upper()}_{mode.upper()}"
                _add(family, (name, mode), h.get(book, _NOTHING) if name == "mmap_lock" else _NOTHING)
        yield family
    walk = HistogramMetricFamily("rmapd_rmap_walk_vmas", "VMAs visited by an rmap walk.", labels=("kind",))
    for kind in _WALKS:
        walk.add_metric((kind,), [(str(float(2**n)), 0.0) for n in range(13)] + [("+Inf", 0.0)], 0.0)
    yield walk


def _self(s: Snapshot) -> Iterator[CounterMetricFamily | GaugeMetricFamily | InfoMetricFamily]:
    level = (((f,), float(f == s.fidelity)) for f in _FIDELITIES)
    yield _gauge("rmapd_fidelity", "1 for the fidelity in force.", ("level",), level)
    yield _gauge("rmapd_gate_open", "1 while events are booked.", (), [((), float(s.gate_open))])
    yield _gauge("rmapd_oracle_ready", "1 where the page-table oracle is calibrated.", (), [((), float(not s.oracle_reason))])
    yield _counter("rmapd_user_seconds", "User CPU time of the daemon since the gate opened.", (), [((), s.user_seconds)])
    yield _gauge("rmapd_peak_rss_bytes", "Peak resident set of the daemon.", (), [((), s.peak_rss_bytes)])
    yield InfoMetricFamily("rmapd_build", "Version and kernel.", {"version": tracer.__version__, "kernel": s.kernel})
