"""K1 on this kernel: silence, lines that user space writes, a flood, no capability."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.live.conftest import daemons_user
from tracer.config import Config
from tracer.daemon.probes import running_kernel
from tracer.daemon.rehearsal import rehearse
from tracer.daemon.session import Session, open_session
from tracer.invariants.base import Coverage
from tracer.invariants.verdict import Verdict
from tracer.process import privileges, users

KMSG = Path("/dev/kmsg")
SEGFAULT = [sys.executable, "-S", "-c", "import ctypes; ctypes.string_at(0)"]
"""The kernel prints a line of its own about it (debug.exception-trace)."""
FLOOD_SECONDS = 4
FLOOD = """
while True:
    with open('/dev/kmsg', 'w') as log:
        log.write('BUG: Bad page map in process flood  pte:1 pmd:0')
"""


class Watched:
    """A session, and every event of a line that it takes."""

    def __init__(self, session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
        self.session, self.lines = session, list[str]()
        events = session.probes.tables.events
        line_of = events.complaint_line

        def take(raw: bytes) -> str:
            self.lines.append(line_of(raw))
            return self.lines[-1]

        monkeypatch.setattr(events, "complaint_line", take)

    def checks(self, verdict: Verdict) -> int:
        return self.session.checker.tally.checks["K1", verdict]

    def step_until(self, done: Callable[[], bool], seconds: float = 5) -> bool:
        end = time.monotonic() + seconds
        while not done() and time.monotonic() < end:
            self.session.step(0.05)
        return done()

    def step(self, seconds: float) -> None:
        self.step_until(lambda: False, seconds)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[Watched]:
    try:
        os.close(os.open(KMSG, os.O_RDONLY))
    except OSError as error:
        pytest.skip(f"{KMSG}: {error}")
    with open_session(Config(), running_kernel()) as session:
        yield Watched(session, monkeypatch)


def segfault() -> None:
    subprocess.run(SEGFAULT, check=False, capture_output=True)


def write(line: str) -> None:
    """Write a line; each open file may write some lines a second (printk.devkmsg)."""
    with contextlib.suppress(OSError), KMSG.open("w") as out:
        out.write(line)


def test_lines_of_the_kernel_hold_and_silence_is_no_check(watched: Watched) -> None:
    level, reason = watched.session.coverage["K1"]
    assert level is not Coverage.NONE, reason
    before = watched.checks(Verdict.HOLDS)
    watched.step(1.5)
    quiet = watched.checks(Verdict.HOLDS)
    assert quiet - before <= 5, "only what the kernel has printed meanwhile"
    segfault()
    assert watched.step_until(lambda: watched.checks(Verdict.HOLDS) > quiet)
    assert watched.checks(Verdict.VIOLATED) + watched.checks(Verdict.SUSPECT) == 0


def test_complaint_that_user_space_writes_is_seen_and_no_finding(watched: Watched) -> None:
    """The tracepoint fires for it; the facility of the record says that it is not the kernel's."""
    forged = [
        "BUG: Bad rss-counter state mm:00000000eadbeef0 type:MM_ANONPAGES val:1",
        "BUG: Bad page map in process forged  pte:1 pmd:2",
        "WARNING: CPU: 0 PID: 1 at mm/rmap.c:1 folio_x+0x1/0x2",
    ]
    for line in forged:
        write(f"<1>{line}")
    assert watched.step_until(lambda: len(watched.lines) >= 3)
    assert watched.lines == forged
    watched.step(2)
    assert watched.session.checker.tally.violations == {}
    assert watched.checks(Verdict.VIOLATED) == 0


def test_flood_costs_little_and_is_lost_by_number(watched: Watched) -> None:
    """The first event reads the kernel's symbols, once: it is no part of what a second costs."""
    write("BUG: Bad page map in process first  pte:1 pmd:0")
    assert watched.step_until(lambda: len(watched.lines) > 0)
    counters = watched.session.probes.tables.counters
    with subprocess.Popen([sys.executable, "-S", "-c", FLOOD]) as writer:
        watched.step(0.5)
        before = counters.read()["COMPLAINTS_UNSENT"]
        cpu, wall = time.thread_time(), time.monotonic()
        watched.step(FLOOD_SECONDS)
        cpu, wall = time.thread_time() - cpu, time.monotonic() - wall
        unsent = counters.read()["COMPLAINTS_UNSENT"] - before
        writer.kill()
    lost = watched.checks(Verdict.UNVERIFIABLE)
    print(
        f"{unsent / wall:.0f} lines/s: {cpu / wall:.1%} of a CPU,"
        f" {lost} records lost, {len(watched.lines)} events, {unsent} not sent"
    )
    assert watched.session.checker.tally.violations == {}
    assert unsent > 1000 * FLOOD_SECONDS
    assert lost > 0
    assert cpu / wall < 0.25


def test_log_is_read_without_any_capability(watched: Watched) -> None:
    """The daemon opens it, and then drops what root has. In a child: it cannot be undone."""
    read, wrote = os.pipe()
    child = os.fork()
    if child == 0:
        held = privileges.drop(lambda: rehearse(watched.session), users.resolve(daemons_user()[0]))
        before = watched.checks(Verdict.HOLDS)
        os.write(wrote, b"dropped\n")
        counted = watched.step_until(lambda: watched.checks(Verdict.HOLDS) > before)
        os.write(wrote, f"{counted} {os.getuid()} {held}\n".encode())
        os._exit(0)
    os.close(wrote)
    with os.fdopen(read) as told:
        assert told.readline() == "dropped\n"
        segfault()
        seen, uid, held = told.readline().split(maxsplit=2)
    os.waitpid(child, 0)
    print(held)
    assert seen == "True"
    assert int(uid) == daemons_user().pw_uid
    assert held.startswith("no capability")
