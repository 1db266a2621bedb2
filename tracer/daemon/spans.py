"""Spans of the daemon's time for `rmapd exec`: nothing is attached a second time.

exec connects to a Unix socket, and its connection is the span: a client that vanishes frees it. The
thread that owns the session answers, between two turns of its loop, and never waits for a client.
A span holds no report: exec has the ones of its beginning and its end, and takes their difference.
"""

from __future__ import annotations

import contextlib
import logging
import select
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec

import tracer
from tracer import logs
from tracer.config import LEVELS
from tracer.daemon.event_loop import TICK_SECONDS
from tracer.daemon.left_open import left_open
from tracer.daemon.session import Session
from tracer.daemon.snapshots import build_totals
from tracer.daemon.span import Span, Stage
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
    decode_asked,
    encode,
)
from tracer.errors import RmapdError
from tracer.process import local_socket
from tracer.process.users import User
from tracer.results.difference import SpanFacts, lower
from tracer.results.snapshot import Snapshot
from tracer.results.wire import SnapshotCodec

log = logging.getLogger("rmapd")

MOST_SPANS = 4
_STEP_SECONDS = 0.02
"""How long the loop sleeps at most while a span waits for something."""
_LOOK_PAUSE = 9
"""Times what a look at the ledger took: the next one waits for that."""
_AUDIT_SECONDS = 30.0
_OWNERS_SECONDS = 1.0
_MOST_SETTLE_SECONDS = 600.0
_FRESH_SECONDS = 1.0
_FAREWELL_SECONDS = 2.0


class Spans:
    """The daemon's side. Call work() after each turn of the loop, with the loop's thread.

    listening: None where there is no socket, and so no span. report() makes a new report and gives
    it to every output of the daemon. owner: the pid that users know.
    """

    def __init__(
        self,
        listening: local_socket.Listening | None,
        session: Session,
        report: Callable[[], Snapshot],
        owner: int,
    ) -> None:
        self._listening, self._session, self._report = listening, session, report
        self._owner, self._codec = owner, SnapshotCodec(session.protocol_events.encoding)
        self._spans: dict[int, Span] = {}
        self._last: tuple[int, Snapshot] | None = None
        self._poll = select.epoll()
        if listening:
            self._poll.register(listening.fd, select.EPOLLIN)
        session.fidelity.watchers.append(self._note_coverage)

    @property
    def fd(self) -> int:
        """Readable when work() has something to do."""
        return self._poll.fileno()

    @property
    def open(self) -> int:
        """How many connections there are."""
        return len(self._spans)

    def patience(self) -> float:
        """Return how long the loop may sleep, in seconds."""
        return _STEP_SECONDS if any(one.waits for one in self._spans.values()) else TICK_SECONDS

    def work(self) -> None:
        """Accept, read, answer, and move on the spans that wait."""
        for fd, _ in self._poll.poll(0):
            if fd in self._spans:
                self._talk(self._spans[fd])
            elif self._listening:
                self._accept(self._listening)
        for span in [one for one in self._spans.values() if one.waits]:
            self._move_on(span)

    def end(self, last: Snapshot) -> None:
        """Send the daemon's last report to every span that has begun."""
        for span in list(self._spans.values()):
            if span.stage not in (Stage.NEW, Stage.AUDIT_BEFORE):
                with contextlib.suppress(OSError, RmapdError):
                    span.connection.settimeout(_FAREWELL_SECONDS)
                    span.connection.sendall(span.out)
                    facts = replace(self._facts(span), outstanding=last.outstanding)
                    message = encode(Report(self._codec.encode(last), facts, stopped=True))
                    span.connection.sendall(local_socket.framed(message))

    def close(self) -> None:
        """Close all connections and the socket, and remove the socket's name."""
        for span in list(self._spans.values()):
            self._drop(span)
        self._poll.close()
        if self._listening:
            self._listening.close()

    # connections
    def _accept(self, listening: local_socket.Listening) -> None:
        while (client := listening.accept()) is not None:
            pid, uid, _ = local_socket.peer(client)
            refused = ""
            if uid:
                refused = "only root may use the daemon"
            elif len(self._spans) >= MOST_SPANS:
                refused = f"{MOST_SPANS} others use the daemon already"
            session = self._session
            greeting = Greeting(
                tracer.__version__,
                WIRE,
                self._owner,
                time.time() - (session.clock() - session.started_ns) / 1e9,
                session.fidelity.level,
                refused,
            )
            if refused:
                log.warning("exec of process %d is refused: %s", pid, refused)
                with contextlib.suppress(OSError):
                    client.send(local_socket.framed(encode(greeting)))
                client.close()
                continue
            span = Span(client, pid)
            self._spans[client.fileno()] = span
            self._poll.register(client.fileno(), select.EPOLLIN)
            self._send(span, local_socket.framed(encode(greeting)))

    def _talk(self, span: Span) -> None:
        """Send what is left to send, else read. A client that does not read gets no more."""
        if span.out:
            self._send(span, b"")
            return
        raw = local_socket.received(span.connection)
        if raw is None:
            return
        if not raw:
            self._drop(span)
            return
        span.inbox.add(raw)
        try:
            while not span.out and (message := span.inbox.next()) is not None:
                self._take(span, decode_asked(message))
        except (ValueError, msgspec.DecodeError) as error:
            log.warning("exec of process %d sends what is no request: %s", span.pid, error)
            self._drop(span)

    def _send(self, span: Span, message: bytes) -> None:
        span.out = memoryview(bytes(span.out) + message) if message else span.out
        try:
            while span.out:
                span.out = span.out[span.connection.send(span.out) :]
        except BlockingIOError:
            pass
        except OSError:
            self._drop(span)
            return
        wanted = select.EPOLLOUT if span.out else select.EPOLLIN
        self._poll.modify(span.connection.fileno(), wanted)

    def _answer(self, span: Span, message: Answer) -> None:
        self._send(span, local_socket.framed(encode(message)))

    def _drop(self, span: Span) -> None:
        """Forget a span; its client is gone, or has what it asked for."""
        number = span.connection.fileno()
        if self._spans.pop(number, None) is None:
            return
        self._poll.unregister(number)
        span.connection.close()
        if span.stage is not Stage.NEW:
            seconds = (self._session.clock() - span.began_ns) / 1e9
            log.info(
                "exec of process %d no longer uses this daemon, after %.1f s",
                span.pid,
                seconds,
                extra=logs.fields(pid=span.pid, seconds=round(seconds, 3)),
            )

    # requests
    def _take(self, span: Span, asked: Asked) -> None:
        now = self._session.clock()
        match asked:
            case Begin() if span.stage is Stage.NEW:
                self._begin(span)
            case Count():
                seconds, totals = build_totals(self._session)
                self._answer(span, Totals(seconds, totals))
            case Look() if span.stage is Stage.RUNNING:
                self._answer_report(span)
            case End(seconds) if span.stage is Stage.RUNNING:
                limit = self._session.config.max_entry_age_seconds + max(0.0, seconds)
                span.ended_ns, span.stage = now, Stage.SETTLE
                span.until_ns = now + int(min(limit, _MOST_SETTLE_SECONDS) * 1e9)
            case _:
                self._answer(span, Failed(f"{type(asked).__name__} while {span.stage.value}"))

    def _begin(self, span: Span) -> None:
        session = self._session
        span.began_ns = session.clock()
        log.info(
            "exec of process %d uses this daemon",
            span.pid,
            extra=logs.fields(pid=span.pid),
        )
        self._ask_for_audit(span, Stage.AUDIT_BEFORE)

    def _ask_for_audit(self, span: Span, stage: Stage) -> None:
        session = self._session
        span.stage, span.pass_ended, span.doubts = stage, False, []
        span.until_ns = session.clock() + int(_AUDIT_SECONDS * 1e9)
        span.number = session.audit.ask() if session.audit else 0

    def _move_on(self, span: Span) -> None:
        """Do the next step of a span that waits, if what it waits for is there."""
        if span.out:
            return
        session = self._session
        late = session.clock() >= span.until_ns
        if span.stage is Stage.SETTLE:
            if late or self._settled(span):
                self._ask_for_audit(span, Stage.AUDIT_AFTER)
        elif late or self._audited(span):
            span.undecided = self._undecided(span) if late else ""
            began = span.stage is Stage.AUDIT_BEFORE
            if began:
                span.stage, span.undecided = Stage.RUNNING, ""
                span.began_ns = session.clock()
            self._answer_report(span, begins=began)
            if not began:
                span.stage = Stage.RUNNING

    def _settled(self, span: Span) -> bool:
        """Return whether nothing of the span is open; a look takes a tenth of the time at most."""
        began = self._session.clock()
        if began < span.next_look_ns:
            return False
        settled = not left_open(self._session, span.began_ns, span.ended_ns).entries
        now = self._session.clock()
        span.next_look_ns = now + _LOOK_PAUSE * (now - began)
        return settled

    def _audited(self, span: Span) -> bool:
        """Return whether the pass has ended, and what it doubted is decided."""
        audit, owners = self._session.audit, self._session.owners
        if audit is None:
            return True
        if not audit.has_ended(span.number):
            return False
        now = self._session.clock()
        if not span.pass_ended:
            span.pass_ended, span.doubts = True, list(audit.open_doubts)
            span.owners = owners.followed if owners else frozenset()
            span.owners_until_ns = now + int(_OWNERS_SECONDS * 1e9)
        span.doubts = [one for one in span.doubts if any(one is two for two in audit.open_doubts)]
        if owners:
            span.owners &= owners.followed
        return not span.doubts and (not span.owners or now >= span.owners_until_ns)

    def _undecided(self, span: Span) -> str:
        """Return what the audit has not come to, in a sentence."""
        if not span.pass_ended:
            return (
                f"The state audit did not look at every process within {_AUDIT_SECONDS:g} s of the"
                " command's end."
            )
        count = len(span.doubts)
        doubts = "1 doubt" if count == 1 else f"{count} doubts"
        return f"{doubts} of the state audit got no verdict." if count else ""

    # reports
    def _answer_report(self, span: Span, *, begins: bool = False) -> None:
        try:
            snapshot = self._snapshot(fresh=span.stage is not Stage.RUNNING or begins)
            if begins:
                span.level, span.lowered = snapshot.fidelity, bool(snapshot.lowered_to)
                span.coverage = dict(self._session.fidelity.coverage)
            raw = self._codec.encode(snapshot)
        except (RmapdError, ValueError, TypeError, OverflowError) as error:
            log.error("exec of process %d gets no report: %s", span.pid, error)
            self._answer(span, Failed(str(error)))
            return
        self._answer(span, Report(raw, self._facts(span)))

    def _snapshot(self, *, fresh: bool) -> Snapshot:
        """Make a report, or return the last one if it is a second old at most."""
        now = self._session.clock()
        if not fresh and self._last and now - self._last[0] < _FRESH_SECONDS * 1e9:
            return self._last[1]
        snapshot = self._report()
        self._last = now, snapshot
        return snapshot

    def _facts(self, span: Span) -> SpanFacts:
        until = span.ended_ns or self._session.clock()
        left = left_open(self._session, span.began_ns, until)
        return SpanFacts(
            span.level,
            span.lowered,
            span.coverage,
            left.entries,
            left.oldest_seconds,
            span.undecided,
        )

    def _note_coverage(self) -> None:
        """Note for each span how low fidelity and coverage have come. A watcher of Fidelity."""
        fidelity = self._session.fidelity
        for span in self._spans.values():
            if span.stage in (Stage.NEW, Stage.AUDIT_BEFORE):
                continue
            span.coverage = lower(span.coverage, fidelity.coverage)
            if LEVELS.index(fidelity.level) > LEVELS.index(span.level):
                span.level, span.lowered = fidelity.level, True


def listen(lock_file: Path, user: User | None) -> local_socket.Listening | None:
    """Open the socket, before privileges are dropped; None, with a warning, where that fails."""
    try:
        return local_socket.Listening(lock_file, user)
    except OSError as error:
        log.warning(
            "rmapd exec cannot use this daemon, as its socket in %s cannot be opened: %s",
            local_socket.folder_of(lock_file),
            error.strerror or error,
        )
        return None
