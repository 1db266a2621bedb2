"""Durations and moments as text."""

from __future__ import annotations

import datetime

import pytest

from tracer.time_text import before_last, precise, short, two_units, utc


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(12.0, "12 s"), (1.26, "1.3 s"), (0.0042, "4.2 ms"), (9.6e-6, "10 µs"), (3e-8, "30 ns")],
)
def test_short_duration_has_two_digits_and_one_unit(seconds: float, text: str) -> None:
    assert short(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0 s"),
        (89.9, "89.9 s"),
        (90.0, "1 min 30 s"),
        (7500.0, "2 h 5 min"),
        (93_600.0, "1 d 2 h"),
    ],
)
def test_long_duration_has_two_units(seconds: float, text: str) -> None:
    assert two_units(seconds) == text


@pytest.mark.parametrize(
    ("nanoseconds", "text"),
    [(0, "0"), (999, "−999 ns"), (1000, "−1 µs"), (1_500_000, "−1.5 ms"), (3 * 10**9, "−3 s")],
)
def test_time_before_last_window_is_negative(nanoseconds: int, text: str) -> None:
    assert before_last(nanoseconds) == text


def test_unknown_duration_is_a_dash() -> None:
    assert precise(None) == "–"


def test_moment_is_printed_in_utc_to_the_second() -> None:
    zone = datetime.timezone(datetime.timedelta(hours=2))
    moment = datetime.datetime(2026, 1, 1, 1, 2, 3, 999999, tzinfo=zone)
    assert utc(moment) == utc("2025-12-31T23:02:03.999999Z") == "2025-12-31 23:02:03 UTC"
