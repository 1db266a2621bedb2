"""Spans of the daemon's time: the socket, the messages, and what a span waits for."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

import tracer
from tests.support.native import LAYOUTS
from tests.support.snapshots import snapshot
from tracer.config import Config
from tracer.daemon import spans as spans_module
from tracer.daemon.left_open import left_open
from tracer.daemon.session import Session
from tracer.daemon.span_client import SILENT_SECONDS, DaemonConnection, DaemonGone, connect
from tracer.daemon.span_messages import (
    WIRE,
    Answer,
    Begin,
    Count,
    End,
    Failed,
    Greeting,
    Look,
    Report,
    Totals,
    encode,
)
from tracer.daemon.spans import MOST_SPANS, Spans
from tracer.errors import RmapdError, Temporary
from tracer.invariants.base import Coverage
from tracer.process import local_socket
from tracer.protocol.codec import Encoding
from tracer.results.snapshot import Snapshot
from tracer.results.wire import SnapshotCodec

SECOND = 10**9
CODEC = SnapshotCodec(Encoding(LAYOUTS))


class Audit:
    """An audit whose passes end when the test sets `ended`."""

    def __init__(self) -> None:
        self.asked = self.ended = 0
        self.open_doubts: tuple[object, ...] = ()

    def ask(self) -> int:
        self.asked += 1
        return self.asked

    def has_ended(self, number: int) -> bool:
        return self.ended >= number


def row(first_ns: int, count: int = 1, key: bytes = b"r", keys: tuple[int, ...] = (1,)) -> Any:
    return SimpleNamespace(first_ns=first_ns, count=count, key=key, keys=keys)


class Rig:
    """A daemon's spans over a session that the test makes up, and clients of them."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.rows, self.cases = 5 * SECOND, list[Any](), dict[object, Any]()
        self.audit, self.owned = Audit(), frozenset[tuple[int, int]]()
        self.nowhere, self.reports, self.client_now = 0, 0, 0.0
        self.closed = False
        self.lock, self.uid = folder / "rmapd.lock", 0
        self.fidelity = SimpleNamespace(
            level="full", coverage={"M1": (Coverage.FULL, "")}, watchers=[]
        )
        held = SimpleNamespace(cases=self.cases, held=lambda: 0)
        self.session = cast(
            "Session",
            SimpleNamespace(
                clock=lambda: self.now,
                started_ns=0,
                config=Config(),
                audit=self.audit,
                owners=SimpleNamespace(followed=self.owned),
                fidelity=self.fidelity,
                checker=SimpleNamespace(open_cases=held),
                probes=SimpleNamespace(
                    tables=SimpleNamespace(ledger=SimpleNamespace(rows=lambda: self.rows))
                ),
                protocol_events=SimpleNamespace(encoding=Encoding(LAYOUTS)),
                outstanding=lambda: sum(one.count for one in self.rows) + self.nowhere,
            ),
        )
        monkeypatch.setattr(spans_module, "build_totals", lambda _s: (self.now / 1e9, {"holds": 1}))
        monkeypatch.setattr(local_socket, "peer", lambda _c: (1, self.uid, 0))
        self.clients = list[DaemonConnection]()
        self.listening = local_socket.Listening(self.lock, None)
        self.spans = Spans(self.listening, self.session, self.report, 77)

    def close(self) -> None:
        if not self.closed:
            self.spans.close()
        self.closed = True

    def report(self) -> Snapshot:
        self.reports += 1
        return snapshot(running_seconds=self.now / 1e9, run="1")

    def connect(self) -> DaemonConnection:
        """Connect while the daemon's loop runs; raises what connect() raises."""
        found: list[DaemonConnection | BaseException | None] = []

        def work() -> None:
            try:
                found.append(connect(self.lock, lambda: self.client_now))
            except BaseException as error:
                found.append(error)

        client = threading.Thread(target=work)
        client.start()
        while client.is_alive():
            self.spans.work()
            client.join(0.001)
        (one,) = found
        if isinstance(one, BaseException):
            raise one
        assert one is not None
        self.clients.append(one)
        return one

    def connect_and_count(self) -> DaemonConnection:
        client = self.connect()
        client.send(Count())
        return client

    def turn(self, client: DaemonConnection) -> Answer | None:
        for _ in range(5):
            self.spans.work()
        return client.received()

    def begun(self) -> DaemonConnection:
        client = self.connect()
        client.send(Begin())
        assert self.turn(client) is None, "the audit's pass has not ended"
        self.audit.ended = self.audit.asked
        assert isinstance(self.turn(client), Report)
        return client

    def ending(self, client: DaemonConnection, settle_seconds: float = 5.0) -> Report | None:
        client.send(End(settle_seconds))
        answer = self.turn(client)
        assert answer is None or isinstance(answer, Report)
        return answer


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    made = Rig(tmp_path, monkeypatch)
    yield made
    for client in made.clients:
        client.close()
    made.close()


def test_span_begins_and_ends_with_a_pass_of_the_audit_and_a_report(rig: Rig) -> None:
    client = rig.begun()
    assert (client.greeting.pid, client.greeting.fidelity, client.greeting.wire) == (77, "full", 1)
    client.send(Count())
    assert rig.turn(client) == Totals(5.0, {"holds": 1})
    rig.now += SECOND
    assert rig.ending(client) is None
    assert rig.audit.asked == 2
    rig.audit.ended = 2
    last = rig.turn(client)
    assert isinstance(last, Report)
    assert CODEC.decode(last.snapshot).running_seconds == 6.0
    assert (last.facts.outstanding, last.facts.lowered, last.stopped) == (0, False, False)


def test_end_waits_for_entries_of_the_span_and_for_no_others(rig: Rig) -> None:
    client = rig.begun()
    rig.rows += [row(1, key=b"before"), row(rig.now + 1, 2, b"in the span")]
    rig.now += SECOND
    rig.rows.append(row(rig.now + 1, key=b"after"))
    rig.ending(client)
    assert (rig.audit.asked, rig.spans.patience() < 0.1) == (1, True), "it settles"
    del rig.rows[1]
    assert rig.turn(client) is None
    assert rig.audit.asked == 2


def test_entry_that_stays_open_is_reported_and_does_not_keep_the_client_waiting(rig: Rig) -> None:
    client = rig.begun()
    rig.rows.append(row(rig.now + 1, 2))
    rig.now += SECOND
    rig.ending(client, 5.0)
    rig.now += int(14.9 * SECOND)
    assert rig.turn(client) is None
    assert rig.audit.asked == 1
    rig.now += SECOND
    rig.turn(client)
    rig.audit.ended = 2
    last = rig.turn(client)
    assert isinstance(last, Report)
    assert (last.facts.outstanding, round(last.facts.oldest_entry_seconds)) == (2, 17)


def test_ledger_that_is_slow_to_read_is_not_read_all_the_time(rig: Rig) -> None:
    client, looks = rig.begun(), list[int]()

    def read() -> list[Any]:
        looks.append(rig.now)
        rig.now += SECOND // 10
        return [row(5 * SECOND)]

    cast("Any", rig.session).probes.tables.ledger.rows = read
    rig.nowhere = 1
    rig.ending(client, 5.0)
    began = rig.now
    while rig.now < began + 10 * SECOND:
        rig.now += SECOND // 50
        rig.spans.work()
    assert 8 <= len(looks) <= 12, "one second of ten"


def test_entry_in_no_row_and_a_case_without_a_row_are_open(rig: Rig) -> None:
    rig.nowhere = 3
    assert left_open(rig.session, 0, rig.now).entries == 3
    rig.nowhere = 0
    rig.cases["a"] = SimpleNamespace(opened_ns=4), None, None
    rig.cases["b"] = SimpleNamespace(opened_ns=4), row(4, 5, b"x", ()), None
    assert left_open(rig.session, 0, 9).entries == 6
    assert left_open(rig.session, 5, 9).entries == 0


def test_pass_that_does_not_end_and_doubts_without_a_verdict_are_named(rig: Rig) -> None:
    client = rig.begun()
    rig.ending(client)
    rig.now += 31 * SECOND
    last = rig.turn(client)
    assert isinstance(last, Report)
    assert "did not look at every process" in last.facts.undecided
    client = rig.begun()
    rig.ending(client)
    rig.audit.ended, rig.audit.open_doubts = rig.audit.asked, (object(),)
    assert rig.turn(client) is None
    rig.now += 31 * SECOND
    last = rig.turn(client)
    assert isinstance(last, Report)
    assert last.facts.undecided == "1 doubt of the state audit got no verdict."


def test_lower_fidelity_in_the_span_is_known_at_its_end(rig: Rig) -> None:
    early = rig.begun()
    for level, coverage in (
        ("owner", (Coverage.PARTIAL, "fewer hooks")),
        ("full", (Coverage.FULL, "")),
    ):
        rig.fidelity.level, rig.fidelity.coverage = level, {"M1": coverage}
        for watch in rig.fidelity.watchers:
            watch()
    late = rig.begun()
    found = []
    for client in (early, late):
        rig.ending(client)
        rig.audit.ended = rig.audit.asked
        last = rig.turn(client)
        assert isinstance(last, Report)
        found.append((last.facts.fidelity, last.facts.lowered, last.facts.coverage["M1"]))
    assert found == [
        ("owner", True, (Coverage.PARTIAL, "for a part of the time: fewer hooks")),
        ("full", False, (Coverage.FULL, "")),
    ]


def test_number_of_spans_is_bounded_and_a_client_that_vanishes_frees_its_own(rig: Rig) -> None:
    clients = [rig.begun() for _ in range(MOST_SPANS)]
    with pytest.raises(Temporary, match="4 others use the daemon already"):
        rig.connect()
    clients[0].close()
    rig.spans.work()
    assert rig.spans.open == MOST_SPANS - 1
    clients[1].send(End(5.0))
    clients[1].close()
    for _ in range(3):
        rig.spans.work()
    assert rig.spans.open == MOST_SPANS - 2
    assert rig.spans.patience() == 1.0, "the loop waits for nobody"
    rig.begun()


def test_other_users_are_refused(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    daemon = threading.current_thread()

    def peer(_connection: object) -> tuple[int, int, int]:
        return 1, 1000 if threading.current_thread() is daemon else 0, 0

    monkeypatch.setattr(local_socket, "peer", peer)
    with pytest.raises(Temporary, match="the daemon refuses: only root may use the daemon"):
        rig.connect()
    assert rig.spans.open == 0


def test_socket_of_another_user_is_not_trusted(rig: Rig) -> None:
    rig.uid = os.getuid() + 4000
    with pytest.raises(RmapdError, match="the process that listens there belongs to uid"):
        rig.connect()


@pytest.mark.parametrize("sent", [b"GET / HTTP/1.1\r\n\r\n", b"\1\0\0\0\xc0", b"\xff" * 8000])
def test_what_is_no_request_ends_the_connection(rig: Rig, sent: bytes) -> None:
    client = rig.connect()
    os.write(client.fd, sent)
    with pytest.raises(DaemonGone):
        rig.turn(client)
    assert rig.spans.open == 0


def test_requests_out_of_order_fail_and_change_nothing(rig: Rig) -> None:
    client = rig.connect()
    for asked in (Look(), End(1.0)):
        client.send(asked)
        assert isinstance(rig.turn(client), Failed)
    assert rig.audit.asked == 0


def test_client_that_does_not_read_holds_up_nobody(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    lazy = rig.begun()
    monkeypatch.setattr(CODEC.__class__, "encode", lambda _c, _s: bytes(30 << 20))
    rig.now += 2 * SECOND
    lazy.send(Look())
    began = time.monotonic()
    rig.spans.work()
    assert rig.turn(rig.connect_and_count()) == Totals(7.0, {"holds": 1})
    assert time.monotonic() - began < 5
    answer = None
    while answer is None:
        rig.spans.work()
        answer = lazy.received()
    assert isinstance(answer, Report)
    assert len(answer.snapshot) == 30 << 20


def test_looks_within_a_second_share_a_report(rig: Rig) -> None:
    first, second = rig.begun(), rig.begun()
    before = rig.reports
    for client in (first, second):
        client.send(Look())
        assert isinstance(rig.turn(client), Report)
    assert rig.reports == before
    rig.now += 2 * SECOND
    first.send(Look())
    assert isinstance(rig.turn(first), Report)
    assert rig.reports == before + 1


def test_daemon_that_ends_sends_its_last_report_to_spans_that_have_begun(rig: Rig) -> None:
    begun, fresh = rig.begun(), rig.connect()
    rig.spans.end(snapshot(run="1", gate_open=False))
    rig.close()
    last = begun.received()
    assert isinstance(last, Report)
    assert last.stopped
    for client in (begun, fresh):
        with pytest.raises(DaemonGone, match=r"\(pid 77\) died or was restarted"):
            client.received()
    assert connect(rig.lock) is None
    assert list(local_socket.folder_of(rig.lock).iterdir()) == [], "the socket is removed"


def test_daemon_that_hangs_is_given_up(rig: Rig) -> None:
    client = rig.begun()
    client.send(Count())
    rig.client_now = SILENT_SECONDS - 1
    assert client.received() is None
    client.wait_longer(100)
    rig.client_now = SILENT_SECONDS + 99
    assert client.received() is None
    rig.client_now += 2
    with pytest.raises(DaemonGone, match="has not answered for 161 s"):
        client.received()


def test_no_socket_and_a_stale_one_mean_no_daemon(tmp_path: Path) -> None:
    lock = tmp_path / "rmapd.lock"
    assert connect(lock) is None
    killed = os.fork()
    if not killed:
        local_socket.Listening(lock, None)
        os._exit(0)
    os.waitpid(killed, 0)
    assert list(local_socket.folder_of(lock).iterdir())
    assert connect(lock) is None, "its daemon was killed"
    again = local_socket.Listening(lock, None)
    again.close()
    assert not list(local_socket.folder_of(lock).iterdir())


def test_folder_that_others_can_write_is_not_trusted(tmp_path: Path) -> None:
    lock = tmp_path / "rmapd.lock"
    local_socket.folder_of(lock).mkdir()
    local_socket.folder_of(lock).chmod(0o777)
    with pytest.raises(RmapdError, match="other users can write it"):
        connect(lock)
    with pytest.raises(PermissionError):
        local_socket.Listening(lock, None)
    local_socket.folder_of(lock).rmdir()
    local_socket.folder_of(lock).symlink_to(tmp_path)
    assert connect(lock) is None


@pytest.mark.parametrize(
    ("greeting", "words"),
    [
        (Greeting("0.0.9", WIRE, 1, 0.0, "full"), "it is 0.0.9 (messages 1), this is"),
        (Greeting(tracer.__version__, WIRE + 1, 1, 0.0, "full"), "(messages 2)"),
    ],
)
def test_daemon_of_another_version_is_refused(
    tmp_path: Path, greeting: Greeting, words: str
) -> None:
    with pytest.raises(RmapdError) as error, answering(tmp_path / "l", encode(greeting)) as lock:
        connect(lock)
    assert words in str(error.value)
    assert "restart the daemon" in str(error.value)


@contextlib.contextmanager
def answering(lock: Path, message: bytes) -> Iterator[Path]:
    """Be a daemon that greets with this message."""
    listening = local_socket.Listening(lock, None)

    def greet() -> None:
        for _ in range(1000):
            if client := listening.accept():
                with client:
                    client.sendall(local_socket.framed(message))
                return
            time.sleep(0.005)

    thread = threading.Thread(target=greet)
    thread.start()
    try:
        yield lock
    finally:
        thread.join()
        listening.close()
