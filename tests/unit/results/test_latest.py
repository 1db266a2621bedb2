"""The snapshot on demand.

A reader gets one that is a second old at most, or after a moment the last one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from tests.support.clock import SAFETY_SECONDS, until
from tests.support.snapshots import snapshot
from tracer.results.latest import LatestSnapshot


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_no_snapshot_is_requested_before_the_first_and_after_the_last() -> None:
    clock = Clock()
    current = LatestSnapshot(clock)
    assert current() is None
    closed = current.put(snapshot(gate_open=False))
    clock.now += 60
    assert current() is closed
    assert not current.wanted()
    current.close()


def test_fresh_snapshot_is_returned_as_it_is() -> None:
    clock = Clock()
    current = LatestSnapshot(clock)
    first = current.put(snapshot())
    clock.now += 0.9
    assert current() is first
    assert not current.wanted()
    assert not current.old()
    clock.now += 9.1
    assert current.old()
    current.close()


def test_many_readers_cause_one_snapshot(monkeypatch: pytest.MonkeyPatch) -> None:
    """With patience for a machine on which a quarter of a second is not enough to start threads."""
    clock = Clock()
    current = LatestSnapshot(clock)
    current.put(snapshot())
    clock.now += 1
    found: list[object] = []
    threads = [threading.Thread(target=lambda: found.append(current())) for _ in range(8)]
    wait_for = threading.Condition.wait_for
    monkeypatch.setattr(
        threading.Condition, "wait_for", lambda self, what, _: wait_for(self, what, SAFETY_SECONDS)
    )
    for thread in threads:
        thread.start()
    until(current.wanted)
    second = current.put(snapshot())
    for thread in threads:
        thread.join()
    assert found == [second] * 8
    current.wanted()
    assert current() is second
    assert not current.wanted(), "it is fresh: nobody is asked again"
    current.close()


def test_busy_checker_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    current = LatestSnapshot(clock)
    first = current.put(snapshot())
    clock.now += 5
    waited = list[float]()

    def wait_for(_: threading.Condition, came: Callable[[], bool], seconds: float) -> bool:
        waited.append(seconds)
        return came()

    monkeypatch.setattr(threading.Condition, "wait_for", wait_for)
    assert current() is first
    assert current() is first
    assert waited == [0.25], "once a second"
    assert current.wanted()
    assert not current.wanted()
    current.close()
