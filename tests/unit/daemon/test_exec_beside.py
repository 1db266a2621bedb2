"""exec beside a daemon, with a daemon whose answers the test makes."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from tests.support.busy import well
from tests.support.native import LAYOUTS
from tracer.config import Config
from tracer.daemon import exec_beside
from tracer.daemon.span_client import DaemonConnection, DaemonGone
from tracer.daemon.span_messages import (
    WIRE,
    Answer,
    Asked,
    Begin,
    Count,
    End,
    Failed,
    Greeting,
    Look,
    Report,
    Totals,
)
from tracer.errors import NotCheckable, RmapdError, Temporary
from tracer.invariants.base import Coverage
from tracer.invariants.verdict import Verdict
from tracer.protocol.codec import Encoding
from tracer.results.difference import SpanFacts
from tracer.results.snapshot import Snapshot
from tracer.results.wire import SnapshotCodec
from tracer.supervision.exec_request import ExecRequest

CODEC = SnapshotCodec(Encoding(LAYOUTS))
BEFORE = replace(well(), run="1", running_seconds=10.0, violations={})


def later(holds: int, violated: int = 0, **changes: Any) -> Snapshot:
    checks = dict(BEFORE.checks)
    for verdict, more in ((Verdict.HOLDS, holds), (Verdict.VIOLATED, violated)):
        checks["M1", verdict] = checks.get(("M1", verdict), 0) + more
    return replace(BEFORE, checks=checks, running_seconds=15.0, **changes)


def totals(**counts: int) -> Totals:
    names = (*(verdict.value for verdict in Verdict), "windows", "migration_entries")
    return Totals(11.0, dict.fromkeys(names, 0) | counts)


class Daemon:
    """A connection whose answers come from the function `answers`; None: it is silent."""

    def __init__(self, answers: Callable[[Asked], Answer | Exception | None]) -> None:
        self.greeting = Greeting("x", WIRE, 4711, 1.0, "full")
        self.waiting, self.closed, self.asked = False, False, list[Asked]()
        self._answers, self._next = answers, list[Answer | Exception]()

    def send(self, asked: Asked) -> None:
        self.asked.append(asked)
        self.waiting = True
        if (answer := self._answers(asked)) is not None:
            self._next.append(answer)

    def received(self) -> Answer | None:
        if not self._next:
            return None
        self.waiting = False
        answer = self._next.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def wait_longer(self, seconds: float) -> None:
        assert seconds > 0

    def wait(self, _descriptors: list[int], seconds: float) -> None:
        time.sleep(min(0.01, max(0.0, seconds)))

    def close(self) -> None:
        self.closed = True


def answering(
    last: Snapshot, facts: SpanFacts | None = None, first: Snapshot = BEFORE
) -> Callable[[Asked], Answer | Exception | None]:
    """Answer as a daemon does, with this last report."""

    def answer(asked: Asked) -> Answer:
        if isinstance(asked, Count):
            return totals(holds=1)
        snapshot = first if isinstance(asked, Begin) else last
        return Report(CODEC.encode(snapshot), facts or SpanFacts("full"))

    return answer


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    """Give the signals back, which a run takes."""
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    yield
    signal.set_wakeup_fd(-1)
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


def run(daemon: Daemon, folder: Path, *command: str, **options: Any) -> tuple[int, dict[str, Any]]:
    report = folder / "r.json"
    config = Config(require=options.pop("require", []))
    request = ExecRequest(config, command or ("true",), report, **options)
    code = exec_beside.run(request, cast("DaemonConnection", daemon))
    assert daemon.closed
    return code, json.loads(report.read_text())


def test_report_is_of_the_span(tmp_path: Path) -> None:
    daemon = Daemon(answering(later(42)))
    code, report = run(daemon, tmp_path)
    assert code == 0
    assert report["invariants"]["M1"]["checks"]["holds"] == 42
    assert (report["duration_seconds"], report["gate_open"]) == (5.0, False)
    assert [type(one) for one in daemon.asked if not isinstance(one, Count)] == [Begin, End]
    assert report["daemon"]["pid"] == 4711
    code, report = run(Daemon(answering(later(1, violated=2))), tmp_path, "sh", "-c", "exit 9")
    assert (code, report["exit"]["source"], report["command"]["exit_status"]) == (
        3,
        "violation",
        9,
    )


def test_required_invariants_are_those_of_exec(tmp_path: Path) -> None:
    none = {**BEFORE.coverage, "L1": (Coverage.NONE, "no hooks")}
    uncovered = replace(BEFORE, coverage=none)
    daemon = Daemon(answering(later(1), first=uncovered))
    with pytest.raises(NotCheckable, match="L1 is required and cannot be checked here"):
        run(daemon, tmp_path, "touch", str(tmp_path / "ran"), require=["L1"])
    assert not (tmp_path / "ran").exists()
    facts = SpanFacts("owner", lowered=True, coverage=none)
    code, report = run(Daemon(answering(later(1), facts)), tmp_path, require=["L1"])
    assert (code, report["exit"]["source"], report["required"]) == (4, "required", ["L1"])
    code, report = run(Daemon(answering(later(1), facts)), tmp_path)
    assert (code, report["required"], report["standing"]["colour"]) == (0, [], "amber")


def test_daemon_that_is_gone_is_exit_71_and_never_green(tmp_path: Path) -> None:
    def answer(asked: Asked) -> Answer | Exception | None:
        return DaemonGone("gone") if isinstance(asked, End | Count) else begins(asked)

    begins = answering(later(1))
    code, report = run(Daemon(answer), tmp_path, "sleep", "60")
    assert (code, report["exit"]["source"]) == (71, "daemon")
    assert report["command"]["signal"] == "SIGTERM"
    assert (report["standing"]["colour"], report["duration_seconds"]) == ("amber", 0.0)
    assert report["ended_early"]["reason"].startswith("gone; what happened after ")


def test_daemon_that_is_stopped_gives_its_last_report(tmp_path: Path) -> None:
    last = Report(CODEC.encode(later(7, violated=1)), SpanFacts("full"), stopped=True)
    begins = answering(later(1))
    daemon = Daemon(lambda asked: last if isinstance(asked, Count) else begins(asked))
    code, report = run(daemon, tmp_path, "sleep", "60")
    assert (code, report["invariants"]["M1"]["checks"]["holds"]) == (71, 7)
    assert "the daemon (pid 4711) was stopped" in report["ended_early"]["reason"]


def test_new_finding_is_fetched_at_once(tmp_path: Path) -> None:
    begins, counts = answering(later(1)), iter([0, 0, 1])

    def answer(asked: Asked) -> Answer | Exception | None:
        if isinstance(asked, Count):
            return totals(violated=next(counts, 1))
        return begins(asked)

    daemon = Daemon(answer)
    run(daemon, tmp_path, "sleep", "3.5")
    kinds = [type(one) for one in daemon.asked]
    assert kinds.count(Look) == 1
    assert kinds.index(Look) == 4, "after the third count, not ten seconds later"


def test_command_ends_once_something_is_violated(tmp_path: Path) -> None:
    """What the daemon had counted before the span is no reason."""
    before = BEFORE.total(Verdict.VIOLATED)
    begins, counts = answering(later(1, violated=1)), iter([before, before, before + 1])

    def answer(asked: Asked) -> Answer | Exception | None:
        if isinstance(asked, Count):
            return totals(violated=next(counts, before + 1))
        return begins(asked)

    started = time.monotonic()
    daemon = Daemon(answer)
    code, report = run(daemon, tmp_path, "sleep", "60", until_violation=True)
    assert (code, report["exit"]["source"]) == (3, "violation")
    assert report["command"]["signal"] == "SIGTERM"
    assert "ended_early" not in report, "the run is whole: it was to end then"
    assert [type(one) for one in daemon.asked].count(Count) == 3
    assert time.monotonic() - started < 30


def test_daemon_that_cannot_report_is_no_verdict(tmp_path: Path) -> None:
    with pytest.raises(Temporary, match="the daemon cannot report: why"):
        run(Daemon(lambda _asked: Failed("why")), tmp_path)
    with pytest.raises(Temporary, match="the daemon is gone"):
        run(Daemon(lambda _asked: DaemonGone("it died")), tmp_path)
    begins = answering(later(1))
    daemon = Daemon(lambda one: Failed("why") if isinstance(one, End) else begins(one))
    code, report = run(daemon, tmp_path)
    assert (code, report["exit"]["source"]) == (71, "daemon")


@pytest.mark.parametrize(("silent", "code"), [(Begin, 143), (End, 143)])
def test_signal_ends_exec_while_the_daemon_is_silent(
    tmp_path: Path, silent: type, code: int
) -> None:
    begins = answering(later(1))
    daemon = Daemon(lambda one: None if isinstance(one, silent) else begins(one))

    def send() -> None:
        for _ in range(2):
            time.sleep(0.5)
            os.kill(os.getpid(), signal.SIGTERM)

    sender = threading.Thread(target=send)
    sender.start()
    request = ExecRequest(Config(), ["true"], tmp_path / "r.json")
    assert exec_beside.run(request, cast("DaemonConnection", daemon)) == code
    sender.join()


def test_timeout_and_fidelity(tmp_path: Path) -> None:
    code, report = run(Daemon(answering(later(1))), tmp_path, "sleep", "60", timeout=0.3)
    assert (code, report["exit"]["source"]) == (124, "timeout")
    daemon = Daemon(answering(later(1)))
    with pytest.raises(RmapdError, match="--fidelity owner cannot be obeyed"):
        exec_beside.run(ExecRequest(Config(), ["true"]), cast("DaemonConnection", daemon), "owner")
    assert (daemon.closed, daemon.asked) == (True, [])
