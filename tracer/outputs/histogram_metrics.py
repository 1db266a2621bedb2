"""Prometheus metrics of times and sizes: windows, migration entries, locks and rmap walks.

Buckets are of a factor of two only where a panel or an alert takes quantiles of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily

from tracer.attach.plan import HookState
from tracer.outputs.families import counter
from tracer.results.snapshot import Snapshot
from tracer.tables.histogram import Histogram

_WALKS = ("anon", "file", "ksm")
_NOTHING = Histogram()
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


def windows_by_function(s: Snapshot) -> dict[str, Histogram]:
    """Return the durations of windows by function, for functions that are hooked or were seen."""
    hooked = {
        h.hook.window for h in s.hooks if h.on or h.state in (HookState.PAUSED, HookState.DETACHED)
    }
    return {name: times for name, times in s.window_times.items() if name in hooked or times.count}


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


def histogram_metrics(s: Snapshot) -> Iterator[CounterMetricFamily | HistogramMetricFamily]:
    """Yield the histograms, and how often a lock did not wait."""
    h = s.histograms
    entry = HistogramMetricFamily(
        "rmapd_migration_entry_seconds", "Time from insertion to removal of a migration entry."
    )
    _add(entry, (), h.get("HIST_MIGRATION_ENTRY", _NOTHING), _ENTRY_POWERS)
    yield entry
    window = HistogramMetricFamily(
        "rmapd_window_seconds", "Duration of a window.", labels=("function",)
    )
    for function, histogram in windows_by_function(s).items():
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
