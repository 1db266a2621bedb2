"""The log of findings: new signatures, hourly repeats, fields for journald."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from tracer.invariants.verdict import Finding, Tally, Verdict, Violation
from tracer.logs import is_journal
from tracer.outputs.log import FindingLog, datagram, to_journald


def violation(n: int = 0, count: int = 1) -> Violation:
    return Violation(
        Finding("L1", Verdict.VIOLATED, "vma_expand", f"shape {n}", "one\ntwo"), 1.0, 2.0, count
    )


class Time:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_new_signature_is_logged_at_once_and_repeats_hourly() -> None:
    clock, lines, tally = Time(), list[str](), Tally()
    journal = FindingLog(clock, {}, lines.append)
    tally.record(violation().first, 1.0)
    journal.new(tally.violations.values())
    (first,) = map(json.loads, lines)
    assert (first["invariant"], first["count"]) == ("L1", 1)
    for _ in range(7200):
        clock.now += 1
        tally.record(violation().first, clock.now, 10)
        journal.repeats(tally.violations.values())
    repeats = [json.loads(line) for line in lines[1:]]
    assert [row["repeats"] for row in repeats] == [36_000, 36_000]
    assert repeats[-1]["count"] == 72_001
    journal.repeats(tally.violations.values(), now=True)
    assert len(lines) == 3, "nothing new, no line"


def test_lines_beyond_limit_are_withheld_and_listed() -> None:
    clock, lines = Time(), list[str]()
    journal = FindingLog(clock, {}, lines.append)
    journal.new(violation(n) for n in range(100))
    assert len(lines) == 30
    journal.repeats([])
    assert len(lines) == 30
    clock.now += 61
    journal.repeats([])
    assert json.loads(lines[-1])["withheld"] == 70
    assert json.loads(lines[-1])["ids"][0] == violation(30).first.id
    journal.new([violation(100)])
    assert json.loads(lines[-1])["signature"].endswith("shape 100")


def test_journald_datagram_encodes_newlines_with_length(tmp_path: Path) -> None:
    assert datagram({"A": "x", "B": "1\n2"}) == b"A=x\nB\n\x03\0\0\0\0\0\0\x001\n2\n"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journald:
        journald.bind(str(tmp_path / "socket"))
        to_journald({"MESSAGE": "x"}, str(tmp_path / "socket"))
        assert journald.recv(1000) == b"MESSAGE=x\n"


def test_journal_stream_is_recognised_by_device_and_inode(tmp_path: Path) -> None:
    with (tmp_path / "stream").open("w") as stream:
        found = os.fstat(stream.fileno())
        assert is_journal({"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"}, stream.fileno())
        assert not is_journal({"JOURNAL_STREAM": "1:2"}, stream.fileno())
        assert not is_journal({}, stream.fileno())
    assert not is_journal({"JOURNAL_STREAM": "1:2"}, 987)


def test_finding_goes_to_journald_and_to_stdout_if_that_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sent, lines = list[Mapping[str, str]](), list[str]()
    monkeypatch.setattr("tracer.outputs.log.is_journal", lambda environ, _fd: bool(environ))
    FindingLog(Time(), {"JOURNAL_STREAM": "1:2"}, lines.append, sent.append).new(
        [violation(count=3)]
    )
    (fields,) = sent
    assert not lines
    assert fields["RMAPD_ID"] == violation().first.id
    assert (fields["RMAPD_INVARIANT"], fields["RMAPD_VERDICT"], fields["RMAPD_FUNCTION"]) == (
        "L1",
        "violated",
        "vma_expand",
    )
    assert json.loads(fields["MESSAGE"])["count"] == 3

    def deaf(_fields: Mapping[str, str]) -> None:
        raise BlockingIOError("full")

    FindingLog(Time(), {"JOURNAL_STREAM": "1:2"}, lines.append, deaf).new([violation()])
    assert len(lines) == 1


def suspected(n: int = 0) -> Violation:
    return Violation(Finding("M4", Verdict.SUSPECT, "migrate_pages", f"shape {n}", "old"), 1.0, 2.0)


@pytest.fixture
def under_systemd(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Let stdout be the stream of journald; returns the environment that says so."""
    monkeypatch.setattr("tracer.outputs.log.is_journal", lambda environ, _fd: bool(environ))
    return {"JOURNAL_STREAM": "1:2"}


def test_violation_is_critical_and_suspect_is_warning(
    caplog: pytest.LogCaptureFixture, under_systemd: dict[str, str]
) -> None:
    """Only findings are critical: a missing hook is not."""
    clock, sent = Time(), list[Mapping[str, str]]()
    journal = FindingLog(clock, under_systemd, print, sent.append)
    journal.new([violation(), suspected()])
    assert [record.levelname for record in caplog.records] == ["CRITICAL", "WARNING"]
    assert [fields["PRIORITY"] for fields in sent] == ["2", "4"]
    again = violation(), suspected()
    for one in again:
        one.count = 9
    clock.now += 3601
    journal.repeats(again)
    assert [fields["PRIORITY"] for fields in sent[2:]] == ["2", "4"], "it goes on"


@pytest.mark.parametrize(("make", "priority"), [(violation, "2"), (suspected, "4")])
def test_withheld_findings_have_level_of_their_worst(
    make: Callable[[int], Violation], priority: str, under_systemd: dict[str, str]
) -> None:
    clock, sent = Time(), list[Mapping[str, str]]()
    journal = FindingLog(clock, under_systemd, print, sent.append)
    journal.new([suspected(n) for n in range(35)])
    journal.new([make(99)])
    clock.now += 61
    journal.repeats([])
    assert "withheld" in sent[-1]["MESSAGE"]
    assert sent[-1]["PRIORITY"] == priority


def test_full_stdout_does_not_stop_logging(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def full(_line: str) -> None:
        raise OSError(28, "No space left on device")

    FindingLog(Time(), {}, full).new([violation()])
    assert "cannot write a finding to stdout" in caplog.text
