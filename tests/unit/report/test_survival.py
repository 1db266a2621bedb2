"""Rates, quantiles and comparisons agree with tables, and with simulated exponential runs."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tracer.report.survival import (
    Times,
    compare_rates,
    poisson_at_most,
    poisson_interval,
    survival,
    times_of,
)

TIMES = st.lists(st.floats(0.001, 1e6), max_size=30).map(tuple)


def simulated(source: random.Random, mean: float, limit: float, runs: int) -> Times:
    """Runs with exponential times, each ended by its violation or by the limit."""
    drawn = [source.expovariate(1 / mean) for _ in range(runs)]
    return times_of([(min(one, limit), one <= limit) for one in drawn])


@pytest.mark.parametrize(
    ("count", "low", "high"),
    [(0, 0, 3.6889), (1, 0.025318, 5.5716), (10, 4.7954, 18.3904), (100, 81.364, 121.627)],
)
def test_poisson_interval_agrees_with_garwoods_table(count: int, low: float, high: float) -> None:
    found = poisson_interval(count)
    assert found.low == pytest.approx(low, rel=1e-4)
    assert found.high == pytest.approx(high, rel=1e-4)


@settings(max_examples=30)
@given(st.integers(0, 300), st.floats(0.5, 0.99))
def test_poisson_interval_contains_the_count_and_has_its_tails(count: int, share: float) -> None:
    found = poisson_interval(count, share)
    assert found.low <= count <= found.high
    assert poisson_at_most(count, found.high) == pytest.approx((1 - share) / 2, rel=1e-6)
    if count:
        above = 1 - poisson_at_most(count - 1, found.low)
        assert above == pytest.approx((1 - share) / 2, rel=1e-6)


def test_rate_is_violations_by_all_the_time_that_was_watched() -> None:
    times = Times((60.0, 120.0), (600.0, 600.0))
    assert times.total == 1380
    assert times.rate == pytest.approx(2 / 1380)
    interval = times.rate_interval()
    assert interval.low < times.rate < interval.high
    silent = Times((), (600.0,))
    assert (silent.rate, silent.rate_interval().low) == (0, 0)
    assert silent.rate_interval().high == pytest.approx(-math.log(0.025) / 600)
    assert math.isnan(Times().rate)
    assert Times().rate_interval().high == math.inf


def test_interval_covers_the_true_rate_of_simulated_runs() -> None:
    """Of 600 soaks nineteen in twenty cover it at least, whatever share of runs is censored."""
    source = random.Random(1)
    for limit in (20.0, 60.0, 600.0):
        covered = 0
        for _ in range(200):
            found = simulated(source, 60.0, limit, 6).rate_interval()
            covered += found.low <= 1 / 60 <= found.high
        assert covered >= 186, limit
        assert covered < 200, "an interval that always covers has no information"


def test_rate_of_many_simulated_runs_is_the_true_one() -> None:
    """Leaving censored runs out, or counting them as violated, would be off by far more."""
    times = simulated(random.Random(2), 60.0, 30.0, 4000)
    assert times.rate == pytest.approx(1 / 60, rel=0.06)
    assert len(times.violated) / math.fsum(times.violated) > 2 / 60


def test_survival_is_kaplan_and_meiers_of_a_known_trial() -> None:
    """Remission in weeks under 6-MP (Freireich and others, 1963), from the textbooks."""
    times = Times((6, 6, 6, 7, 10, 13, 16, 22, 23), (6, 9, 10, 11, 17, 19, 20, 25, 32, 32, 34, 35))
    assert [(time, round(left, 3)) for time, left in survival(times)] == [
        (6, 0.857),
        (7, 0.807),
        (10, 0.753),
        (13, 0.69),
        (16, 0.627),
        (22, 0.538),
        (23, 0.448),
    ]
    assert (times.quantile(0.25), times.quantile(0.5), times.quantile(0.75)) == (13, 23, None)


@given(TIMES, TIMES)
def test_survival_falls_and_quantiles_rise(
    violated: tuple[float, ...], more: tuple[float, ...]
) -> None:
    times = Times(violated, more)
    shares = [1.0, *(left for _, left in survival(times))]
    assert shares == sorted(shares, reverse=True)
    assert all(-1e-9 <= share <= 1 for share in shares)
    quantiles = [times.quantile(share) for share in (0.25, 0.5, 0.75)]
    reached = [one for one in quantiles if one is not None]
    assert reached == sorted(reached)
    assert quantiles[: len(reached)] == reached, "none is reached after one that is not"
    if not more and violated:
        assert times.quantile(0.5) == sorted(violated)[(len(violated) - 1) // 2]


def test_median_is_not_reached_while_most_runs_are_silent() -> None:
    assert Times((5.0,), (10.0, 10.0)).quantile(0.5) is None


def test_an_hour_instead_of_a_minute_is_a_difference_even_of_one_run_each() -> None:
    found = compare_rates(Times((60.0,)), Times((3600.0,)))
    assert found.ratio == pytest.approx(60)
    assert found.chance == pytest.approx(2 / 61)  # Beta(1, 1) is uniform
    assert found.interval.low == pytest.approx(60 * 0.025 / 0.975)
    assert found.interval.high == pytest.approx(60 * 0.975 / 0.025)
    assert compare_rates(Times((3600.0,)), Times((60.0,))).chance == pytest.approx(found.chance)


def test_comparison_is_the_two_sided_binomial_test() -> None:
    """2 of 10 where both watched the same time: 0.109375, as R's binom.test has it."""
    found = compare_rates(Times((10.0,) * 2, (30.0,)), Times((5.0,) * 8, (10.0,)))
    assert found.chance == pytest.approx(0.109375)
    assert found.ratio == pytest.approx(0.25)
    assert found.interval.low == pytest.approx(0.02521 / (1 - 0.02521), rel=1e-3)
    assert found.interval.high == pytest.approx(0.55610 / (1 - 0.55610), rel=1e-3)


@given(TIMES.filter(bool), TIMES, TIMES, TIMES.filter(bool))
def test_interval_of_the_ratio_contains_one_just_where_chance_explains_the_difference(
    a: tuple[float, ...], b: tuple[float, ...], c: tuple[float, ...], d: tuple[float, ...]
) -> None:
    for one, other in ((Times(a, b), Times(c, d)), (Times(a), Times(d))):
        found = compare_rates(one, other)
        if found.chance != pytest.approx(0.05, rel=1e-3):
            assert (found.interval.low <= 1 <= found.interval.high) == (found.chance > 0.05)


def test_run_that_was_violated_at_once_has_a_rate() -> None:
    at_once = times_of([(0.0, True)])
    assert at_once.rate == pytest.approx(1000)
    assert compare_rates(at_once, Times((), (600.0,))).chance < 0.001


def test_comparison_with_a_silent_side_has_no_end() -> None:
    found = compare_rates(Times((1.0, 2.0, 3.0)), Times((), (600.0,)))
    assert (found.ratio, found.interval.high) == (math.inf, math.inf)
    assert found.chance < 1e-4
    assert compare_rates(Times((), (1.0,)), Times((), (1.0,))).chance == 1
    with pytest.raises(ValueError, match="nothing was watched"):
        compare_rates(Times(), Times((1.0,)))


@given(TIMES.filter(bool), TIMES, TIMES, TIMES.filter(bool))
def test_comparison_does_not_depend_on_the_order(
    a: tuple[float, ...], b: tuple[float, ...], c: tuple[float, ...], d: tuple[float, ...]
) -> None:
    one, other = compare_rates(Times(a, b), Times(c, d)), compare_rates(Times(c, d), Times(a, b))
    assert one.chance == pytest.approx(other.chance, rel=1e-6)
    assert 0 < one.chance <= 1 or one.chance == pytest.approx(0)
    assert one.interval.low <= one.ratio * (1 + 1e-6)
    assert one.ratio <= one.interval.high * (1 + 1e-6)


def test_equal_rates_are_told_apart_in_one_of_twenty_simulations_at_most() -> None:
    """The promise of the test, in the design in which runs end at their first violation."""
    source = random.Random(3)
    for runs, limit in ((1, math.inf), (5, math.inf), (1, 120.0), (3, 120.0), (5, 60.0)):
        wrong = 0
        for _ in range(800):
            a, b = (simulated(source, 60.0, limit, runs) for _ in range(2))
            wrong += compare_rates(a, b).chance < 0.05
        assert wrong <= 52, (runs, limit)  # 40 are expected at most; 52 is 2 sigma above


def test_rates_that_differ_ten_times_are_told_apart_by_eight_runs() -> None:
    source, found = random.Random(4), 0
    for _ in range(100):
        a, b = simulated(source, 60.0, 600.0, 8), simulated(source, 600.0, 600.0, 8)
        found += compare_rates(a, b).chance < 0.05
    assert found >= 95
