"""The order of what a step does."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from tracer.daemon.recorder import Recorder
from tracer.daemon.session import Session


def session(said: list[str], finds: list[str], next_tick_ns: int) -> Session:
    """One whose ring has something that is worth these findings."""

    def read_events(_ring: object) -> None:
        said.append("read")
        judge.new_findings += finds

    judge: Any = SimpleNamespace(
        new_findings=["not told yet"], read_events=read_events, count_protocols=None
    )
    judge.work, judge.tick = (lambda: said.append("work")), (lambda: said.append("tick"))
    made = cast(Any, object.__new__(Session))
    made.judge, made._clock, made._next_tick_ns = judge, lambda: 5, next_tick_ns
    made.open_cases = SimpleNamespace(due_ns=lambda: 0, scan=lambda: said.append("scan"))
    made._poll, made._ring = (
        SimpleNamespace(poll=lambda _ms: []),
        SimpleNamespace(fd=3, read=lambda: []),
    )
    judge.doubts = dict
    made.recorder = Recorder(None)
    made._fidelity = SimpleNamespace(
        look=lambda _now, _count: said.append("govern"), doubt=lambda _doubts: None
    )
    return cast(Session, made)


@pytest.mark.parametrize("finds", [[], ["a violation"]])
def test_what_is_found_is_told_before_suspects_are_asked_about(finds: list[str]) -> None:
    said = list[str]()
    assert session(said, finds, next_tick_ns=6).step() is False
    assert said == ["read", *([] if finds else ["work"])]


def test_a_tick_that_is_due_is_not_put_off_by_what_is_found() -> None:
    """Or a kernel that breaks a rule in many ways would keep the watchdog waiting."""
    said = list[str]()
    assert session(said, ["a violation"], next_tick_ns=5).step() is True
    assert said == ["read", "work", "tick", "scan", "govern"]
