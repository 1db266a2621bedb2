"""A supervisor sees its checker report, die or hang; and the exit codes of exec."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time

import pytest

from tests.support.clock import SAFETY_SECONDS
from tracer.daemon.exec_supervisor import exit_code
from tracer.errors import Defect, NotCheckable, RmapdError, Temporary
from tracer.supervision import supervisor
from tracer.supervision.checkpoint import CheckpointMemory
from tracer.supervision.command import FAILED, NotFound, NotRunnable
from tracer.supervision.supervisor import MessageChannel

DEATHS = """
import os, signal, struct, sys, time
from tracer.supervision import supervisor
from tracer.supervision.checkpoint import CheckpointMemory
memory = CheckpointMemory(1 << 16)
ahead = 0.0
channel, checker = supervisor.fork_checker(memory, {hang_seconds}, lambda: time.monotonic() + ahead)
if checker is None:
    channel.send("open")
    left_open = os.open("/dev/zero", os.O_RDONLY)
    channel.send("opened", left_open)
    {checker}
    time.sleep(60)
received, death = [], None
while death is None:
    checker.wait([], 0.1)
    death = checker.death()
    received += checker.channel.received()
    {supervisor}
print(death.as_json())
(left_open,) = (value for kind, value in received if kind == "opened")
assert os.path.exists(f"/proc/self/fd/{{left_open}}"), "both have one table of descriptors"
assert checker.detach()
assert not os.path.exists(f"/proc/self/fd/{{left_open}}")
assert os.path.exists(f"/proc/self/fd/{{memory.fd}}"), "the supervisor keeps its own"
print([kind for kind, _ in received])
"""


def ended(
    checker: str, by_supervisor: str = "pass", hang_seconds: float = 60
) -> subprocess.CompletedProcess[str]:
    """Run both in a process of its own: the one that forks must have a single thread."""
    script = DEATHS.format(checker=checker, supervisor=by_supervisor, hang_seconds=hang_seconds)
    return subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        timeout=SAFETY_SECONDS,
    )


def outcome(checker: str, by_supervisor: str = "pass", hang_seconds: float = 60) -> list[str]:
    return ended(checker, by_supervisor, hang_seconds).stdout.splitlines()


@pytest.mark.parametrize(
    ("checker", "reason"),
    [
        ("os.kill(os.getpid(), signal.SIGBUS)", "killed by SIGBUS"),
        ("channel.send('done', 3); os._exit(3)", "exit status 3"),
        ("os._exit(70)", "exit status 70"),
        ("time.sleep(1000)", r"no sign of life for \d+ s \(state S, 0 s of CPU(, in \w+.*)?\)"),
        ("while True: pass", r"no sign of life for \d+ s \(state R, [1-9]\d* s of CPU.*\)"),
    ],
)
def test_death_is_reported_with_its_reason_and_the_last_messages(checker: str, reason: str) -> None:
    death, received = outcome(checker, hang_seconds=1.0 if "life" in reason else SAFETY_SECONDS)
    assert re.search(f"'reason': 'the checker died: {reason}'", death), death
    assert received == str(["open", "opened", *(["done"] if "done" in checker else [])])


def test_time_in_which_both_were_stopped_is_not_a_hang() -> None:
    """After Ctrl-Z and fg the last beat and the last look are both old: here by 100 s, once."""
    beats = "\n    for _ in range(30): memory.beat(); time.sleep(0.1)"
    stopped = (
        "\n    if not ahead:"
        "\n        ahead = 100.0"
        "\n        os.kill(checker.process, signal.SIGSTOP)"
        "\n        (beat,) = struct.unpack('=Q', os.pread(memory.fd, 8, 8))"
        "\n        os.pwrite(memory.fd, struct.pack('=Q', beat - 10**11), 8)"
        "\n        assert memory.silent_seconds > 99"
        "\n        death = checker.death()"
        "\n        os.kill(checker.process, signal.SIGCONT)"
    )
    death, _ = outcome(beats + "\n    os._exit(9)", stopped)
    assert "exit status 9" in death


STARVED = """
    if not received[2:]:
        from tracer.process import children
        children.main_thread = lambda process: children.MainThread("R", False, 7.0 + {more})
"""


@pytest.mark.parametrize(("more", "seconds"), [("0", 10), ("time.monotonic()", 1)])
def test_checker_that_waits_for_a_cpu_gets_ten_times_as_long(more: str, seconds: int) -> None:
    death, _ = outcome("pass", STARVED.format(more=more), hang_seconds=1.0)
    found = re.search(r"no sign of life for (\d+) s \(state R, (\d+) s of CPU\)", death)
    assert found, death
    assert seconds <= int(found[1]) <= seconds + 9
    assert (int(found[2]) == 0) == (more == "0")


def test_hanging_checker_prints_its_python_stacks() -> None:
    assert "most recent call first" in ended("time.sleep(1000)", hang_seconds=1.0).stderr


def test_errors_are_passed_from_one_process_to_the_other() -> None:
    ours, theirs = MessageChannel.pair()
    for error in (
        RmapdError("what", why="why", hint="hint"),
        NotCheckable("M1 is required", why="no hook"),
    ):
        ours.send_error(error)
        ((kind, value),) = theirs.received()
        again = supervisor.decode_error(value)
        assert (kind, type(again), str(again)) == ("error", type(error), str(error))
    for channel in (ours, theirs):
        os.close(channel.fd)
    ours.send("the other end is closed")


def test_the_checker_waits_until_its_supervisor_has_dropped_the_privileges(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = MessageChannel.pair()
    memory = CheckpointMemory(1 << 16)
    supervised = supervisor.Supervised(memory, os.getpid(), theirs)
    dropped = list[bool]()

    def drop_late() -> None:
        while "dropped" not in [kind for kind, _ in ours.received()]:
            time.sleep(0.01)
        time.sleep(0.2)  # the supervisor imports what it drops with
        dropped.append(True)
        ours.send("another message")
        ours.send("dropped")

    late = threading.Thread(target=drop_late)
    late.start()
    supervised.report_privileges(None)
    assert dropped, "it is not ready before"
    assert not caplog.records
    late.join()
    monkeypatch.setattr(supervisor, "_DROP_SECONDS", 1)
    supervised.report_privileges(None)
    assert "has not dropped its privileges within 1 s" in caplog.text
    for channel in (ours, theirs):
        os.close(channel.fd)


def test_exec_maps_errors_to_the_exit_codes_of_env() -> None:
    errors = [
        NotFound("x"),
        NotRunnable("x"),
        Temporary("another rmapd"),
        Defect("x"),
        RmapdError("usage"),
        NotCheckable("M1"),
    ]
    assert [exit_code(error.exit_code) for error in errors] == [127, 126, FAILED, FAILED, 2, 4]
