"""Times in which the checker did not run."""

from __future__ import annotations

from tracer.checking.stalls import Stalls

SECOND = 10**9


def looked_at(*seconds: float) -> Stalls:
    stalls = Stalls(SECOND)
    for second in seconds:
        stalls.look(int(second * SECOND))
    return stalls


def test_looks_at_their_pace_and_a_little_late_are_no_stall() -> None:
    assert looked_at(1, 2, 3, 5.9, 8.8).within(0, 10 * SECOND) == 0


def test_stall_begins_when_the_next_look_was_due() -> None:
    stalls = looked_at(1, 2, 12, 13)
    assert stalls.within(0, 20 * SECOND) == 9 * SECOND
    assert stalls.within(5 * SECOND, 10 * SECOND) == 5 * SECOND
    assert stalls.within(13 * SECOND, 20 * SECOND) == 0


def test_age_is_the_time_in_which_the_checker_ran() -> None:
    stalls = looked_at(1, 2, 12, 13, 43)
    assert stalls.age(1 * SECOND, 43 * SECOND) == (42 - 9 - 29) * SECOND
