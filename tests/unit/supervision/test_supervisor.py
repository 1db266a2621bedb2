"""What a supervisor makes of a judge that says something, dies, or says nothing; and the exit codes of exec."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from tests.support.clock import SAFETY_SECONDS
from tracer.daemon.exec_supervisor import exit_code
from tracer.errors import Defect, NotCheckable, RmapdError, Temporary
from tracer.supervision import supervisor
from tracer.supervision.command import FAILED, NotFound, NotRunnable
from tracer.supervision.supervisor import SupervisorLine

DEATHS = """
import os, signal, sys, time
from tracer.supervision import supervisor
from tracer.supervision.checkpoint import Memory
memory = Memory(1 << 16)
line, watched = supervisor.fork(memory, {hang_seconds})
if watched is None:
    line.say("open")
    left_open = os.open("/dev/zero", os.O_RDONLY)
    line.say("opened", left_open)
    {judge}
    time.sleep(60)
heard, death = [], None
while death is None:
    watched.wait([], 0.1)
    death = watched.death()
    heard += watched.line.heard()
    {supervisor}
print(death.as_json())
(left_open,) = (what for kind, what in heard if kind == "opened")
assert os.path.exists(f"/proc/self/fd/{{left_open}}"), "the table is one"
assert watched.detach()
assert not os.path.exists(f"/proc/self/fd/{{left_open}}")
assert os.path.exists(f"/proc/self/fd/{{memory.fd}}"), "this is ours"
print([kind for kind, _ in heard])
"""


def seen(judge: str, by_supervisor: str = "pass", hang_seconds: float = 60) -> list[str]:
    """In a process of its own: the one that forks has a single thread."""
    script = DEATHS.format(judge=judge, supervisor=by_supervisor, hang_seconds=hang_seconds)
    return subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        timeout=SAFETY_SECONDS,
    ).stdout.splitlines()


@pytest.mark.parametrize(
    ("judge", "reason"),
    [
        ("os.kill(os.getpid(), signal.SIGBUS)", "killed by SIGBUS"),
        ("line.say('done', 3); os._exit(3)", "exit status 3"),
        ("os._exit(70)", "exit status 70"),
        ("time.sleep(1000)", r"no sign of life for \d+ s"),
    ],
)
def test_a_death_is_told_with_its_reason(judge: str, reason: str) -> None:
    death, heard = seen(judge, hang_seconds=1.0 if "life" in reason else SAFETY_SECONDS)
    assert re.search(f"'reason': 'the judge died: {reason}'", death), death
    assert heard == str(["open", "opened", *(["done"] if "done" in judge else [])]), (
        "also what it said last"
    )


def test_a_time_in_which_both_were_stopped_is_no_hang() -> None:
    """As after Ctrl-Z and fg."""
    beats = "\n    for _ in range(30): memory.beat(); time.sleep(0.1)"
    stopped = "\n    if not hasattr(watched, 'was'): watched.was = 1; time.sleep(0); watched._looked -= 100; memory._words[1] -= 10 ** 11"
    death, _ = seen(beats + "\n    os._exit(9)", stopped)
    assert "exit status 9" in death


def test_errors_go_from_one_process_to_the_other() -> None:
    ours, theirs = SupervisorLine.pair()
    for error in (
        RmapdError("what", why="why", hint="hint"),
        NotCheckable("M1 is required", why="no hook"),
    ):
        ours.say_error(error)
        ((kind, said),) = theirs.heard()
        again = supervisor.error_of(said)
        assert (kind, type(again), str(again)) == ("error", type(error), str(error))
    for line in (ours, theirs):
        os.close(line.fd)
    ours.say("nobody hears it")


def test_exit_codes_of_exec() -> None:
    errors = [
        NotFound("x"),
        NotRunnable("x"),
        Temporary("another rmapd"),
        Defect("x"),
        RmapdError("usage"),
        NotCheckable("M1"),
    ]
    assert [exit_code(error.exit_code) for error in errors] == [127, 126, FAILED, FAILED, 2, 4]
