"""OTLP to a real receiver on loopback, which may be slow or absent without delaying the checker."""

from __future__ import annotations

import json
import re
import sys
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest
from opentelemetry.proto.logs.v1.logs_pb2 import SEVERITY_NUMBER_ERROR, SEVERITY_NUMBER_WARN

from tests.support.clock import SAFETY_SECONDS, Clock, until
from tests.support.collector import collector
from tests.support.snapshots import snapshot
from tracer.errors import RmapdError
from tracer.invariants.verdict import Finding, Tally, Verdict, Violation
from tracer.outputs import otlp
from tracer.outputs.log import FindingLog
from tracer.outputs.otlp import Sender
from tracer.outputs.sinks import Sinks
from tracer.packed import pack
from tracer.results.json_form import violation_json

TRAIL = (
    {
        "time_ns": 5,
        "function": "vma_shrink",
        "task": {"pid": 7, "tgid": 7},
        "vma": {},
        "protocol": "vma_shrink[file]  i_mmap↓w",
        "stack": [],
    },
)


def violation(
    verdict: Verdict = Verdict.VIOLATED, shape: str = "i_mmap before anon"
) -> dict[str, Any]:
    finding = Finding(
        "L1",
        verdict,
        "vma_expand",
        shape,
        "vma_expand takes anon_vma before i_mmap_rwsem",
        {"pid": 7, "tgid": 7, "comm": "vma"},
        ("vma_expand+0x12", "mmap_region+0x3"),
        {"vma": "0xffff888000001000"},
        "vma_expand[file anon mmap:w]  anon↓w i_mmap↓w",
        pack(TRAIL),
    )
    return violation_json(Violation(finding, 1764000000.25, 1764000001.5, 3))


def test_violation_arrives_complete_at_collector() -> None:
    wanted, suspect = violation(), violation(Verdict.SUSPECT)
    with collector() as receiver, otlp.sender(receiver.url, 5.0, "6.1.0-56-amd64") as sender:
        sender.offer(wanted)
        sender.offer(suspect)
        until(lambda: len(receiver.received) == 2)
        until(lambda: sender.counts() == {"sent": 2, "failed": 0, "dropped": 0})
    first, second = receiver.received
    found, record = first["attributes"], first["record"]
    assert found["rmapd.id"] == wanted["id"]
    assert found["rmapd.id"].startswith("L1-")
    assert (found["rmapd.invariant"], found["rmapd.verdict"], found["rmapd.function"]) == (
        "L1",
        "violated",
        "vma_expand",
    )
    assert (found["rmapd.count"], found["rmapd.task.pid"], found["rmapd.task.comm"]) == (
        3,
        7,
        "vma",
    )
    assert json.loads(found["rmapd.trail"]) == list(TRAIL)
    assert json.loads(found["rmapd.evidence"]) == {"vma": "0xffff888000001000"}
    assert json.loads(found["rmapd.stack"]) == ["vma_expand+0x12", "mmap_region+0x3"]
    assert found["rmapd.protocol"] == wanted["protocol"]
    assert record.body.string_value == wanted["summary"]
    assert (record.severity_number, second["record"].severity_number) == (
        SEVERITY_NUMBER_ERROR,
        SEVERITY_NUMBER_WARN,
    )
    assert (record.time_unix_nano, record.event_name) == (1764000000250000000, "rmapd.violation")
    assert first["scope"] == "rmapd"
    assert first["resource"]["service.name"] == "rmapd"
    assert first["resource"]["os.version"] == "6.1.0-56-amd64"
    assert first["resource"]["host.name"]


def test_refused_violation_is_sent_again() -> None:
    with (
        collector() as receiver,
        Sender(otlp.exporter(receiver.url, SAFETY_SECONDS, "6.1"), wait_seconds=0.05) as sender,
    ):
        # The library does not retry after 400; the attempts of the sender succeed.
        receiver.statuses = [400, 400]
        sender.offer(violation())
        until(lambda: len(receiver.received) == 1)
        until(lambda: sender.counts()["sent"] == 1)
    assert receiver.requests == 3
    assert sender.counts() == {"sent": 1, "failed": 0, "dropped": 0}


def test_unreachable_collector_is_counted_as_failed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(otlp, "_TRIES", 2)
    with Sender(
        otlp.exporter("http://127.0.0.1:9/v1/logs", 0.2, "6.1"), wait_seconds=0.01
    ) as sender:
        sender.offer(violation())
        until(lambda: sender.counts()["failed"] == 1)
    assert "was not accepted in 2 attempts; it is in this log" in caplog.text


def test_hanging_collector_does_not_delay_offer_or_end(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With a queue of 4 and a collector that hangs, offering 1,000 violations takes no time.

    The end of the sender waits for five seconds of its clock.
    """
    clock = Clock()
    monkeypatch.setattr(otlp, "time", clock)
    began = clock.now
    with collector() as receiver:
        receiver.hold.set()
        with Sender(otlp.exporter(receiver.url, SAFETY_SECONDS, "6.1"), queue_size=4) as sender:
            sender.offer(violation())
            until(lambda: receiver.requests == 1)
            for _ in range(1000):
                sender.offer(violation())
            assert sender.counts() == {"sent": 0, "failed": 0, "dropped": 996}
            assert clock.now == began, "no offer waits"
        assert clock.now - began == pytest.approx(5, abs=0.1)
    assert sender.counts()["dropped"] == 1001
    assert "5 violations were not accepted before the end of the run" in caplog.text


def test_violation_that_cannot_be_encoded_is_counted_as_failed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with collector() as receiver, otlp.sender(receiver.url, 5.0, "6.1") as sender:
        sender.offer(violation() | {"evidence": object()})
        sender.offer(violation())
        until(lambda: sender.counts() == {"sent": 1, "failed": 1, "dropped": 0})
    assert re.search(r"cannot send \S+: TypeError", caplog.text)


def test_sender_without_endpoint_starts_no_thread() -> None:
    before = threading.active_count()
    with otlp.sender("", 5.0, "6.1") as sender:
        sender.offer(violation())
        assert threading.active_count() == before
    assert sender.counts() == {}


def test_missing_otlp_extra_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http._log_exporter", None)
    with pytest.raises(RmapdError, match="OTLP is not installed") as raised:
        otlp.sender("http://127.0.0.1:4318/v1/logs", 5.0, "6.1")
    assert "rmapd[otlp]" in str(raised.value)


def test_new_finding_is_logged_and_offered() -> None:
    finding = Finding(
        "M1",
        Verdict.VIOLATED,
        "migrate_pages",
        "level=PTE",
        "an entry is left behind",
        trail=pack(TRAIL),
    )
    tally, new, lines, offered = Tally(), [finding], list[str](), list[Any]()
    tally.record(finding, 1.0)
    receiver: Any = SimpleNamespace(offer=offered.append, counts=lambda: {"sent": 1})
    after = Sinks(None, FindingLog(time.time, {}, lines.append), receiver).deliver(
        tally, new, snapshot()
    )
    assert [json.loads(line) for line in lines] == json.loads(json.dumps(offered))
    assert offered[0]["id"] == finding.id
    assert after.otlp == {"sent": 1}
    assert new == [finding], "the caller's list is not changed"
