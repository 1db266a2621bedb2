"""The difference of two reports of one run, and the bytes in which exec gets them."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.busy import tracepoints_only, well
from tests.support.native import LAYOUTS
from tests.support.snapshots import FINDING, full, snapshot
from tracer.bpf.programs import RunStatistics
from tracer.errors import RmapdError
from tracer.invariants.base import Coverage
from tracer.invariants.verdict import Verdict, Violation
from tracer.protocol.codec import Encoding
from tracer.results.audit import AuditProgress
from tracer.results.difference import OtherRun, SpanFacts, difference, known_before, lower
from tracer.results.json_form import as_json, iso
from tracer.results.snapshot import Snapshot
from tracer.results.standing import Colour, ReasonKind
from tracer.results.standing_facts import standing
from tracer.results.wire import SnapshotCodec
from tracer.tables.histogram import SLOTS, Histogram

CODEC = SnapshotCodec(Encoding(LAYOUTS))
FULL = SpanFacts("full")
COUNTS = st.integers(0, 1000)
BASE = snapshot()
VERDICTS = st.sampled_from(list(Verdict))


def numbers(value: Any) -> list[float]:
    """Return every number in a value, however deep."""
    if isinstance(value, bool) or value is None:
        return []
    if isinstance(value, int | float):
        return [value]
    if isinstance(value, dict):
        return [n for one in value.values() for n in numbers(one)]
    if isinstance(value, tuple | list):
        return [n for one in value for n in numbers(one)]
    if isinstance(value, Histogram):
        return [*value.slots, value.sum_ns]
    if isinstance(value, RunStatistics):
        return [value.runs, value.seconds, value.missed]
    if isinstance(value, AuditProgress):
        return [*value.counted.values(), *value.doubts.values(), value.cpu_seconds]
    return []


@st.composite
def states(draw: st.DrawFn) -> Snapshot:
    """Draw a state of one run, with any counts."""
    slots = [*draw(st.tuples(COUNTS, COUNTS, COUNTS)), *[0] * (SLOTS - 3)]
    names = st.sampled_from(["M1", "L2", "V3"])
    counted = st.dictionaries(st.tuples(names, VERDICTS), COUNTS)
    met = draw(st.integers(0, 5))
    histogram = Histogram(tuple(slots), draw(COUNTS))
    return replace(
        BASE,
        checks=draw(counted),
        rest=draw(counted),
        violations={FINDING.id: Violation(FINDING, 1.0, 2.0, met)} if met else {},
        statistics={"a": RunStatistics(1, draw(COUNTS), draw(COUNTS) / 7, draw(COUNTS))},
        histograms={"HIST_MIGRATION_ENTRY": histogram},
        window_times={"vma_expand": histogram},
        lock_waits={"anon": histogram},
        counters=draw(st.dictionaries(st.sampled_from(["LEDGER_LOST", "MMS_LOST"]), COUNTS)),
        entries=draw(st.dictionaries(VERDICTS, COUNTS)),
        oracle=draw(st.dictionaries(st.sampled_from(["asked", "cleared"]), COUNTS)),
        audit=AuditProgress({"vmas": draw(COUNTS)}, {"cleared": draw(COUNTS)}, cpu_seconds=1.5),
        unreadable=draw(COUNTS),
        user_seconds=draw(COUNTS) / 3,
        fidelity_changes={"lower": draw(COUNTS), "raise": draw(COUNTS)},
        run="1",
    )


COUNTED = (
    "checks violations statistics histograms window_times windows_unsampled lock_waits lock_holds"
    " counters entries oracle audit unreadable user_seconds rest fidelity_changes otlp"
).split()


@given(states())
def test_difference_of_equal_reports_is_empty(one: Snapshot) -> None:
    span = difference(one, one, FULL)
    assert not any(numbers({name: getattr(span, name) for name in COUNTED}))
    assert (span.checks, span.violations, span.rest, span.lost) == (
        {},
        {},
        {},
        dict.fromkeys(span.lost, 0),
    )
    assert (span.running_seconds, span.outstanding, span.gate_open) == (0, 0, False)
    assert standing(span).colour is Colour.AMBER, "nothing was checked: never green"
    assert ReasonKind.NOTHING in standing(span).reasons


@given(states(), states())
def test_difference_is_never_negative(before: Snapshot, after: Snapshot) -> None:
    span = difference(before, after, FULL)
    assert min(numbers({name: getattr(span, name) for name in COUNTED})) >= 0


@given(states(), st.integers(0, 9), VERDICTS)
def test_counts_are_those_of_the_span(before: Snapshot, more: int, verdict: Verdict) -> None:
    known = before.checks.get(("M1", verdict), 0)
    after = replace(before, checks={**before.checks, ("M1", verdict): known + more})
    assert difference(before, after, FULL).checks == ({("M1", verdict): more} if more else {})


def test_reports_of_real_runs_lose_nothing_from_an_empty_beginning() -> None:
    for made in (well, tracepoints_only, full):
        after = made()
        none = replace(
            after,
            **{
                one.name: type(getattr(after, one.name))()
                for one in fields(after)
                if isinstance(getattr(after, one.name), dict | tuple)
                and one.name not in ("invariants", "coverage", "hooks")
            },
            audit=AuditProgress(),
            unreadable=0,
            user_seconds=0.0,
            running_seconds=0.0,
        )
        span = difference(none, after, SpanFacts(after.fidelity, outstanding=after.outstanding))
        for name in ("checks", "violations", "protocols", "lock_graph", "histograms", "counters"):
            assert getattr(span, name) == {
                "checks": {key: n for key, n in after.checks.items() if n}
            }.get(name, getattr(after, name)), name


def test_restart_of_the_daemon_is_recognised() -> None:
    before, after = snapshot(run="1"), snapshot(run="2", running_seconds=99.0)
    with pytest.raises(OtherRun, match="different runs"):
        difference(before, after, FULL)
    with pytest.raises(OtherRun):
        difference(snapshot(running_seconds=2.0), snapshot(running_seconds=1.0), FULL)


def test_span_begins_with_its_first_report_though_the_clock_was_set() -> None:
    before = snapshot(taken_seconds=1000.0, running_seconds=5.0)
    after = snapshot(taken_seconds=1002.9, running_seconds=8.0)
    span = difference(before, after, FULL)
    assert (span.began_seconds, span.taken_seconds, span.running_seconds) == (1000.0, 1002.9, 3.0)
    report = as_json(span, ["true"], 0)
    assert (report["started"], report["ended"]) == (iso(1000.0), iso(1002.9))


def test_finding_met_again_has_the_count_of_the_span_and_is_known_before() -> None:
    other = replace(FINDING, shape="level=PMD")
    before = snapshot(violations={FINDING.id: Violation(FINDING, 1.0, 2.0, 5)})
    after = snapshot(
        violations={
            FINDING.id: Violation(FINDING, 1.0, 9.0, 7),
            other.id: Violation(other, 8.0, 9.0, 1),
        }
    )
    span = difference(before, after, FULL)
    assert {id: one.count for id, one in span.violations.items()} == {FINDING.id: 2, other.id: 1}
    assert known_before(before, span) == [FINDING.id]
    assert after.violations[FINDING.id].count == 7, "the daemon's own is not changed"
    assert difference(after, after, FULL).violations == {}


def test_coverage_of_a_span_is_its_lowest() -> None:
    first = {"M1": (Coverage.FULL, ""), "L1": (Coverage.PARTIAL, "a"), "V1": (Coverage.NONE, "b")}
    now = {"M1": (Coverage.NONE, "c"), "L1": (Coverage.FULL, ""), "V1": (Coverage.PARTIAL, "d")}
    found = lower(first, now)
    assert found == {
        "M1": (Coverage.NONE, "for a part of the time: c"),
        "L1": (Coverage.PARTIAL, "a"),
        "V1": (Coverage.NONE, "b"),
    }
    assert lower(found, first) == found, "a coverage that comes back is not that of the span"


def test_lowered_fidelity_open_entries_and_doubts_make_a_span_amber() -> None:
    before = replace(well(), running_seconds=0.0, checks={})
    green = difference(before, replace(well(), fidelity_changes={}), FULL)
    assert standing(green).colour is Colour.GREEN
    for facts, kind, words in (
        (SpanFacts("sampled", lowered=True), ReasonKind.FIDELITY, "to sampled"),
        (SpanFacts("full", outstanding=3), ReasonKind.OUTSTANDING, "3 migration entries got no"),
        (SpanFacts("full", undecided="2 doubts."), ReasonKind.OUTSTANDING, "2 doubts."),
    ):
        stands = standing(difference(before, well(), facts))
        assert stands.colour is Colour.AMBER
        assert words in stands.reasons[kind]


def test_fidelity_that_came_back_in_the_span_is_still_lowered() -> None:
    after = replace(well(), fidelity="full", fidelity_changes={"lower": 1, "raise": 1})
    span = difference(replace(well(), running_seconds=0.0), after, SpanFacts("owner", lowered=True))
    assert (after.lowered_to, span.lowered_to, span.fidelity) == ("", "owner", "owner")


@pytest.mark.parametrize("made", [snapshot, full, well, tracepoints_only])
def test_snapshot_survives_the_wire(made: Any) -> None:
    one = made()
    assert CODEC.decode(CODEC.encode(one)) == one


def test_snapshot_of_another_rmapd_is_refused() -> None:
    for raw in (b"", b"\xc0", CODEC.encode(snapshot())[:-9]):
        with pytest.raises(RmapdError, match="cannot read the daemon's report"):
            CODEC.decode(raw)
