"""`rmapd events`: each finding once, in order, also over restarts; updates on request."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from tests.support import busy
from tests.support.served import Daemon
from tests.unit.client.test_status import rmapd
from tracer.client.address import from_url
from tracer.client.connection import Client
from tracer.client.events import Events, follow
from tracer.errors import RmapdError, Unreachable
from tracer.invariants.verdict import Verdict, Violation

_NOW = 1_767_225_600.0


def violation(number: int, count: int = 1) -> Violation:
    """Return a finding of its own signature, found after those with smaller numbers."""
    first = replace(busy.violations()[0].first, shape=f"shape {number}")
    return Violation(first, _NOW + number, _NOW + number, count)


def found(*violations: Violation) -> dict[str, Violation]:
    return {one.first.id: one for one in violations}


class Reader:
    """Looks at a daemon; each look returns what was emitted, as (event, id, count)."""

    def __init__(self, daemon: Daemon, *, updates: bool = False) -> None:
        self.client = Client(from_url(daemon.url), timeout=30.0)
        self.events = Events(self.client, updates=updates)
        self.everything: list[dict[str, Any]] = []

    def look(self) -> list[tuple[str, str, int]]:
        new = list(self.events.look())
        self.everything += new
        return [(one["event"], one["id"], one["count"]) for one in new]


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    with Daemon(busy.well()) as made:
        yield made


@pytest.fixture
def reader(daemon: Daemon) -> Iterator[Reader]:
    made = Reader(daemon)
    yield made
    made.client.close()


def test_finding_is_returned_once_and_whole(daemon: Daemon, reader: Reader) -> None:
    assert reader.look() == []
    one = violation(1)
    daemon.put(violations=found(one))
    assert reader.look() == [("finding", one.first.id, 1)]
    whole = reader.everything[0]
    assert (whole["run"], len(whole["trail"])) == (daemon.snapshot.run, 5)
    assert whole["task"]["comm"] == busy.HOSTILE
    assert whole["host"]
    assert reader.look() == []


def test_findings_are_in_the_order_in_which_they_were_found(daemon: Daemon, reader: Reader) -> None:
    third, first, second = violation(3), violation(1), violation(2)
    daemon.put(violations=found(third, first, second))
    assert [id for _, id, _ in reader.look()] == [one.first.id for one in (first, second, third)]


def test_finding_that_is_met_again_is_silent_without_updates(
    daemon: Daemon, reader: Reader
) -> None:
    daemon.put(violations=found(violation(1)))
    reader.look()
    daemon.put(violations=found(violation(1, count=9)))
    assert reader.look() == []


def test_finding_that_is_met_again_is_an_update_without_evidence(daemon: Daemon) -> None:
    reader = Reader(daemon, updates=True)
    with reader.client:
        id = violation(1).first.id
        daemon.put(violations=found(violation(1)))
        assert reader.look() == [("finding", id, 1)]
        assert reader.look() == []
        daemon.put(violations=found(violation(1, count=9)))
        assert reader.look() == [("update", id, 9)]
        assert "trail" not in reader.everything[-1]
        assert reader.look() == []


@pytest.mark.parametrize("updates", [False, True])
def test_restart_of_the_daemon_repeats_no_finding(
    daemon: Daemon, updates: bool, caplog: pytest.LogCaptureFixture
) -> None:
    reader = Reader(daemon, updates=updates)
    with reader.client:
        first, second = violation(1, count=5), violation(2)
        daemon.put(violations=found(first))
        assert reader.look() == [("finding", first.first.id, 5)]
        run = daemon.snapshot.run
        daemon.stop()
        with pytest.raises(Unreachable):
            reader.look()
        daemon.start(violations={})
        assert daemon.snapshot.run != run
        assert reader.look() == []
        assert caplog.text.count("was restarted") == 1
        again = violation(1, count=5)
        daemon.put(violations=found(again, second))
        update = [("update", first.first.id, 5)] if updates else []
        assert reader.look() == [*update, ("finding", second.first.id, 1)]
        assert reader.look() == []
        assert caplog.text.count("was restarted") == 1
    ids = [one["id"] for one in reader.everything if one["event"] == "finding"]
    assert len(ids) == len(set(ids)) == 2


def test_finding_whose_evidence_could_not_be_read_comes_at_the_next_look(
    daemon: Daemon, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = violation(1), violation(2)
    daemon.put(violations=found(first, second))
    read, failing = reader.client.violation, [second.first.id]

    def fails_once(id: str) -> dict[str, Any] | None:
        if id in failing:
            failing.remove(id)
            raise Unreachable("the daemon is gone")
        return read(id)

    monkeypatch.setattr(reader.client, "violation", fails_once)
    emitted: list[str] = []
    with pytest.raises(Unreachable):
        emitted.extend(one["id"] for one in reader.events.look())
    assert reader.look() == [("finding", second.first.id, 1)]
    monkeypatch.setattr(reader.client, "violation", lambda _id: None)
    daemon.put(violations=found(first, second, violation(3)))
    assert reader.look() == [], "the daemon was restarted between the two requests"
    monkeypatch.setattr(reader.client, "violation", read)
    assert [id for _, id, _ in reader.look()] == [violation(3).first.id]


def test_findings_without_evidence_are_reported_once(
    daemon: Daemon, reader: Reader, caplog: pytest.LogCaptureFixture
) -> None:
    daemon.put(rest={("M1", Verdict.SUSPECT): 4})
    reader.look()
    reader.look()
    assert caplog.text.count("4 findings are counted without evidence") == 1


class Enough(Exception):
    """Ends follow()."""


def test_follow_waits_for_a_daemon_and_reports_both_ends(
    daemon: Daemon, reader: Reader, caplog: pytest.LogCaptureFixture
) -> None:
    emitted: list[str] = []
    steps: Iterator[Callable[[], Any]] = iter(
        [
            daemon.stop,
            lambda: None,
            lambda: daemon.start(violations=found(violation(2), violation(1))),
            lambda: daemon.put(violations=found(violation(1), violation(2), violation(3))),
        ]
    )

    def sleep(seconds: float) -> None:
        assert seconds == 0.5
        step = next(steps, None)
        if step is None:
            raise Enough
        step()

    daemon.put(violations=found(violation(1)))
    with pytest.raises(Enough):
        follow(reader.events, lambda one: emitted.append(one["id"]), 0.5, sleep)
    assert emitted == [violation(n).first.id for n in (1, 2, 3)]
    assert caplog.text.count("nothing listens there") == 1
    assert caplog.text.count("; waiting") == 1
    assert caplog.text.count("rmapd answers again") == 1
    assert caplog.text.count("was restarted") == 1


def test_follow_ends_with_an_error_that_would_come_again(
    reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused() -> None:
        raise RmapdError("it refuses this user or password")

    monkeypatch.setattr(reader.client, "status", refused)
    with pytest.raises(RmapdError, match="refuses"):
        follow(reader.events, print, 0.5, lambda _: None)


def test_command_prints_a_json_line_for_each_finding(daemon: Daemon) -> None:
    hostile = violation(1)
    hostile = replace(hostile, first=replace(hostile.first, summary="\x1b[31m\nx\u2028"))
    daemon.put(violations=found(hostile, violation(2)))
    done = rmapd("events", "--url", daemon.url)
    assert done.exit_code == 0, done.output
    assert "\x1b" not in done.stdout
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [one["id"] for one in lines] == [hostile.first.id, violation(2).first.id]
    assert lines[0]["summary"] == "\x1b[31m\nx\u2028", "exact to a parser"
    assert {one["event"] for one in lines} == {"finding"}


def test_command_without_a_daemon_is_exit_5(daemon: Daemon) -> None:
    daemon.stop()
    done = rmapd("events", "--url", daemon.url)
    assert (done.exit_code, done.stdout) == (5, "")
    assert "nothing listens there" in done.stderr


def test_command_without_findings_prints_nothing(daemon: Daemon) -> None:
    done = rmapd("events", "--url", daemon.url)
    assert (done.exit_code, done.output) == (0, "")
