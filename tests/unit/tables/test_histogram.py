"""The shares of a histogram: upper edges of its slots of powers of two."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracer.tables.histogram import SLOTS, Histogram


def of(values: list[int]) -> Histogram:
    slots = [0] * SLOTS
    for value in values:
        slots[value.bit_length()] += 1
    return Histogram(tuple(slots), sum(values))


@pytest.mark.parametrize(("share", "edge"), [(0.5, 4), (0.99, 1024), (1.0, 1024)])
def test_edge_is_above_the_share_of_the_values(share: float, edge: int) -> None:
    assert of([1, 2, 3, 1000]).edge_ns(share) == edge


def test_empty_histogram_has_no_edge() -> None:
    assert Histogram().edge_ns(0.5) == 0


@given(st.lists(st.integers(0, 2**40), min_size=1), st.floats(0.01, 1.0))
def test_no_lower_edge_has_the_share(values: list[int], share: float) -> None:
    edge = of(values).edge_ns(share)
    assert sum(value < edge for value in values) >= share * len(values)
    assert sum(value < edge // 2 for value in values) < share * len(values) or edge == 1
