"""Spans in which the kernel left out runs: what they touch, and that their list is bounded."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tracer.checking.missed_runs import MissedRuns


class Kernel:
    """A clock, and a count of missed runs."""

    def __init__(self) -> None:
        self.now, self.count = 0, 0

    def missed_runs(self) -> MissedRuns:
        return MissedRuns(lambda: self.count, lambda: self.now)

    def passes(self, ns: int, misses: int = 0) -> None:
        self.now += ns
        self.count += misses


def test_runs_missed_before_the_first_look_may_have_been_missed_at_any_time() -> None:
    """As after the death of another checker."""
    kernel = Kernel()
    kernel.passes(10, misses=5)
    missed = kernel.missed_runs()
    missed.look()
    assert missed.during(1, 2)
    kernel.passes(10)
    assert not missed.during(11, 20)


def test_a_span_reaches_from_the_look_before_to_the_look_that_finds_it() -> None:
    kernel = Kernel()
    missed = kernel.missed_runs()
    kernel.passes(10)
    missed.look()
    kernel.passes(10, misses=1)
    missed.look()
    kernel.passes(10)
    assert not missed.during(0, 10)
    assert missed.during(0, 11)
    assert missed.during(20, 20)
    assert not missed.during(21, 30)
    assert missed.last_ns == 20


def test_reading_spans_does_not_look() -> None:
    kernel = Kernel()
    missed = kernel.missed_runs()
    kernel.passes(10, misses=5)
    assert not missed.during(1, 20)
    assert missed.last_ns is None
    missed.look()
    assert missed.during(1, 20)


@given(
    st.lists(st.tuples(st.integers(1, 1000), st.booleans()), min_size=1, max_size=2000), st.data()
)
def test_the_list_is_bounded_and_nothing_is_forgotten(
    seconds: list[tuple[int, bool]], data: st.DataObject
) -> None:
    kernel = Kernel()
    missed, times = kernel.missed_runs(), list[int]()
    for ns, misses in seconds:
        kernel.passes(ns, misses)
        times += [kernel.now] * misses
        missed.look()
    assert missed.spans <= 256
    if times:
        when = data.draw(st.sampled_from(times))
        assert missed.during(when, when)
