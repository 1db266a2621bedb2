"""What happened between two snapshots of one run: a part of its time, as a snapshot of its own.

Counts are those of the later snapshot less those of the earlier one. A finding is in the difference
if it was met again in between, or for the first time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

from tracer.bpf.programs import RunStatistics
from tracer.errors import RmapdError
from tracer.invariants.base import Coverage
from tracer.invariants.verdict import Violation
from tracer.results.audit import AuditProgress
from tracer.results.protocols import LockNesting, ProtocolVerdict
from tracer.results.snapshot import Snapshot
from tracer.tables.histogram import Histogram

Coverages = Mapping[str, tuple[Coverage, str]]
"""By invariant: the coverage, and the reason where it is not full."""
_Key = TypeVar("_Key")
_RANKS = {Coverage.NONE: 0, Coverage.PARTIAL: 1, Coverage.FULL: 2}


class OtherRun(RmapdError):
    """The two snapshots are of two runs, or the later one is the earlier one: there is no span."""


@dataclass(frozen=True)
class SpanFacts:
    """What is known of a span of time and is in none of the snapshots at its ends.

    fidelity: the lowest in the span. lowered: the governor had lowered it at some time of the span.
    coverage: the lowest of each invariant in the span; an invariant that is missing here has that
    of the later snapshot. outstanding: migration entries that were inserted in the span and have
    neither a removal nor a verdict; oldest_entry_seconds: the age of the oldest. undecided: what
    else has no verdict, in a sentence.
    """

    fidelity: str
    lowered: bool = False
    coverage: Coverages = field(default_factory=dict)
    outstanding: int = 0
    oldest_entry_seconds: float = 0.0
    undecided: str = ""


def lower(known: Coverages, now: Coverages) -> dict[str, tuple[Coverage, str]]:
    """Return the lowest coverage of each invariant, with the reason why it was that low.

    known: the lowest until now. now: the coverage from now on.
    """
    found = dict(known)
    for name, (level, reason) in now.items():
        before = known.get(name)
        if before is None:
            found[name] = level, reason
        elif _RANKS[level] < _RANKS[before[0]]:
            found[name] = level, f"for a part of the time: {reason}"
    return found


def difference(before: Snapshot, after: Snapshot, facts: SpanFacts) -> Snapshot:
    """Return what happened from one snapshot to a later one of the same run.

    Nothing in it is negative: a count that fell, because a check that was settled by a probe was
    judged by the checker instead, is 0. The gate counts as closed: the span is over. Raises
    OtherRun where the later snapshot is of another run.
    """
    if before.run != after.run or after.running_seconds < before.running_seconds:
        raise OtherRun(
            "the two reports are of different runs",
            why=f"{before.run} and {after.run}",
            hint="the same again: the daemon was restarted",
        )
    return replace(
        after,
        fidelity=facts.fidelity,
        fidelity_changes=_more(before.fidelity_changes, after.fidelity_changes),
        fidelity_lowered=facts.lowered,
        gate_open=False,
        running_seconds=after.running_seconds - before.running_seconds,
        began_seconds=before.taken_seconds,
        coverage={**after.coverage, **facts.coverage},
        checks=_grown(before.checks, after.checks),
        violations=_met(before.violations, after.violations),
        statistics={
            name: _runs(before.statistics.get(name), one) for name, one in after.statistics.items()
        },
        histograms=_histograms(before.histograms, after.histograms),
        window_times=_histograms(before.window_times, after.window_times),
        windows_unsampled=_more(before.windows_unsampled, after.windows_unsampled),
        lock_waits=_histograms(before.lock_waits, after.lock_waits),
        lock_holds=_histograms(before.lock_holds, after.lock_holds),
        protocols=_protocols(before, after),
        lock_graph=_lock_graph(before.lock_graph, after.lock_graph),
        unreadable=max(0, after.unreadable - before.unreadable),
        counters=_more(before.counters, after.counters),
        entries=_more(before.entries, after.entries),
        outstanding=facts.outstanding,
        oldest_entry_seconds=facts.oldest_entry_seconds,
        oldest=(),
        oracle=_more(before.oracle, after.oracle),
        audit=_audit(before.audit, after.audit),
        undecided=facts.undecided,
        otlp=_more(before.otlp, after.otlp),
        statistics_seconds=max(0.0, after.statistics_seconds - before.statistics_seconds),
        user_seconds=max(0.0, after.user_seconds - before.user_seconds),
        rest=_grown(before.rest, after.rest),
        store=None,
    )


def known_before(before: Snapshot, span: Snapshot) -> list[str]:
    """Return the ids of a span's findings that were known when it began."""
    return [one for one in span.violations if one in before.violations]


def _more(before: Mapping[_Key, int], after: Mapping[_Key, int]) -> dict[_Key, int]:
    """Return by how much each count has grown."""
    return {key: max(0, count - before.get(key, 0)) for key, count in after.items()}


def _grown(before: Mapping[_Key, int], after: Mapping[_Key, int]) -> dict[_Key, int]:
    """Return by how much the counts have grown that have."""
    return {key: count for key, count in _more(before, after).items() if count}


def _met(before: Mapping[str, Violation], after: Mapping[str, Violation]) -> dict[str, Violation]:
    """Return the findings that were met in between, each with how often."""
    counts = _grown(
        {id: one.count for id, one in before.items()}, {id: one.count for id, one in after.items()}
    )
    return {id: replace(after[id], count=count) for id, count in counts.items()}


def _runs(before: RunStatistics | None, after: RunStatistics) -> RunStatistics:
    """Return the runs in between; of programs that were loaded in between, all."""
    if before is None or before.program_id != after.program_id:
        return after
    return RunStatistics(
        after.program_id,
        max(0, after.runs - before.runs),
        max(0.0, after.seconds - before.seconds),
        max(0, after.missed - before.missed),
    )


def _histograms(
    before: Mapping[str, Histogram], after: Mapping[str, Histogram]
) -> dict[str, Histogram]:
    none = Histogram()
    return {name: one.since(before.get(name, none)) for name, one in after.items()}


def _protocols(before: Snapshot, after: Snapshot) -> tuple[ProtocolVerdict, ...]:
    known = {one.protocol: one.windows for one in before.protocols}
    grown = ((one, one.windows - known.get(one.protocol, 0)) for one in after.protocols)
    return tuple(replace(one, windows=windows) for one, windows in grown if windows > 0)


def _lock_graph(
    before: tuple[LockNesting, ...], after: tuple[LockNesting, ...]
) -> tuple[LockNesting, ...]:
    known = {(one.held, one.taken): one for one in before}
    found = []
    for one in after:
        earlier = known.get((one.held, one.taken))
        functions = _grown(earlier.functions if earlier else {}, one.functions)
        if functions:
            modes = _grown(earlier.modes if earlier else {}, one.modes)
            found.append(replace(one, modes=modes, functions=functions))
    return tuple(found)


def _audit(before: AuditProgress, after: AuditProgress) -> AuditProgress:
    return replace(
        after,
        counted=_more(before.counted, after.counted),
        doubts=_more(before.doubts, after.doubts),
        cpu_seconds=max(0.0, after.cpu_seconds - before.cpu_seconds),
    )
