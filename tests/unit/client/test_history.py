"""Rates from counts: of a history in columns, and of two looks at totals."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support import busy
from tracer.client.answers import Function, Lock, Rates
from tracer.client.history import History, Speed, Speeds, hold_key, totals, wait_key
from tracer.results.live_json import functions_json, locks_json, rates_json


def rates(*points: tuple[float, int]) -> Rates:
    """Return the answer with these (seconds, windows)."""
    zeros = [0] * len(points)
    return Rates(
        [at for at, _ in points],
        {"M1": [2 * count for _, count in points], "L1": [count for _, count in points]},
        zeros,
        [count for _, count in points],
        zeros,
        [count % 7 for _, count in points],
        zeros,
        [count / 1000 for _, count in points],
        [0.0] * len(points),
    )


def test_history_grows_by_later_points_and_forgets_old_ones() -> None:
    history = History().longer(rates((0, 0), (2, 20)))
    assert history.last == 2
    again = history.longer(rates((2, 999), (4, 40)))
    assert [(p.seconds, p.windows) for p in again.points] == [(0, 0), (2, 20), (4, 40)]
    assert [p.seconds for p in again.longer(rates((603, 50))).points] == [4, 603]
    assert again.longer(rates()) == again


def test_rate_now_is_of_the_last_ten_seconds() -> None:
    assert History().now(lambda p: p.windows) is None
    assert History().longer(rates((5, 50))).now(lambda p: p.windows) is None
    history = History().longer(rates((0, 0), (90, 900), (92, 1000), (100, 1800)))
    assert history.now(lambda p: p.windows) == 90, "from 90 s on"
    assert history.now(lambda p: p.all_checks) == 270
    sparse = History().longer(rates((0, 0), (40, 400)))
    assert sparse.now(lambda p: p.windows) == 10, "of the last two, where none is so young"


def test_parts_of_a_history_have_the_rate_around_their_middle() -> None:
    history = History().longer(rates((0, 0), (10, 100), (20, 100), (40, 700)))
    assert history.rates(lambda p: p.windows, 40, 4) == [10, 0, 30, 30]
    assert history.rates(lambda p: p.windows, 80, 4) == [5 * 2, 30], (
        "nothing before the first point"
    )
    assert history.levels(lambda p: p.outstanding, 40, 4) == [100 % 7, 100 % 7, 0, 0]
    assert History().rates(lambda p: p.windows, 40, 4) == []


def test_count_that_falls_is_no_negative_rate() -> None:
    history = History().longer(rates((0, 100), (10, 0)))
    assert history.now(lambda p: p.windows) == 0
    assert history.rates(lambda p: p.windows, 10, 1) == [0]


@given(
    st.lists(st.tuples(st.floats(0.1, 20), st.integers(0, 1000)), min_size=2, max_size=40),
    st.integers(1, 60),
)
def test_parts_are_never_more_than_asked_nor_faster_than_the_fastest(
    steps: list[tuple[float, int]], bins: int
) -> None:
    points, at, count = [(0.0, 0)], 0.0, 0
    for seconds, more in steps:
        at, count = at + seconds, count + more
        points.append((at, count))
    found = History().longer(rates(*points)).rates(lambda p: p.windows, 120, bins)
    assert len(found) <= bins
    assert max(found, default=0.0) <= max(more / seconds for seconds, more in steps) * (1 + 1e-9)


def test_history_of_the_daemon_is_read_as_it_is_served() -> None:
    current = busy.current()
    answer = msgspec.convert(rates_json(current.points), Rates)
    history = History().longer(answer)
    assert len(history.points) == len(current.points)
    last, before = current.points[-1], current.points[-6]
    expected = sum(last.checks.values()) - sum(before.checks.values())
    assert history.now(lambda p: p.all_checks) == pytest.approx(max(0, expected) / 10)


def test_columns_of_different_length_are_refused() -> None:
    with pytest.raises(msgspec.ValidationError, match="another length"):
        msgspec.convert(msgspec.to_builtins(rates((0, 0))) | {"windows": [1, 2]}, Rates)


def test_speed_is_between_the_looks_of_ten_seconds() -> None:
    speeds = Speeds().later(100.0, {"a": (10, 1.0)})
    assert speeds.by_name == {}
    speeds = speeds.later(102.0, {"a": (30, 1.5), "new": (4, 0.2)})
    assert speeds.by_name == {"a": Speed(10, 0.25), "new": Speed(2, 0.1)}
    for when in (104.0, 106.0, 108.0, 110.0, 112.0):
        speeds = speeds.later(when, {"a": (30, 1.5)})
    assert speeds.by_name["a"] == Speed(0, 0), "what was before is forgotten"
    late = speeds.later(200.0, {"a": (118, 1.5)})
    assert late.by_name["a"] == Speed(1, 0), "the last look counts, however long ago"
    assert late.later(200.0, {}).by_name == {}


def test_totals_have_waits_and_holds_of_each_lock() -> None:
    s = busy.snapshot()
    functions = msgspec.convert(functions_json(s), list[Function])
    locks = msgspec.convert(locks_json(s), list[Lock])
    found = totals(functions, locks)
    assert len(found) == len(functions) + 2 * len(locks)
    one = locks[0]
    assert found[wait_key(one)] == (one.wait.count, one.wait.seconds)
    assert found[hold_key(one)] == (one.hold.count, one.hold.seconds)
