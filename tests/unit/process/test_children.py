"""Children that die, hang or cannot be killed, and a command that does not end."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.support.clock import SAFETY_SECONDS, Clock, until
from tracer.process import children
from tracer.supervision import command as command_module
from tracer.supervision.command import Command, NotFound, NotRunnable

SHARING = """
import os, sys
from tracer.process import children
mine = os.open("/dev/null", os.O_RDONLY)
process = children.fork_sharing_files()
if not process:
    theirs = os.open("/dev/zero", os.O_RDONLY)
    os._exit(theirs)
theirs = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
assert os.read(theirs, 2) == bytes(2), "it is open here"
process = children.fork_sharing_files()
if not process:
    os.closerange(theirs, theirs + 1)
    os._exit(0)
os.waitpid(process, 0)
try:
    os.read(theirs, 1)
except OSError:
    print("closed")
assert os.read(mine, 1) == b""
"""


def test_shared_fork_has_one_table_of_descriptors() -> None:
    """In a process of its own: the one that shares must have a single thread."""
    assert (
        subprocess.run(
            [sys.executable, "-c", SHARING], capture_output=True, text=True, check=True
        ).stdout
        == "closed\n"
    )


GARBAGE = """
import gc, os
from tracer.process import children
gc.disable()
class Holder: pass
one = Holder()
one.file, one.itself = open("/dev/null"), one
del one
process = children.fork_sharing_files()
if not process:
    gc.collect()
    os._exit(0)
os.waitpid(process, 0)
other = os.open("/dev/zero", os.O_RDONLY)
gc.collect()
assert os.read(other, 2) == bytes(2)
print("open")
"""


def test_garbage_of_both_processes_closes_no_file_twice() -> None:
    """The second time its number would belong to another file."""
    done = subprocess.run(
        [sys.executable, "-c", GARBAGE], capture_output=True, text=True, check=False
    )
    assert done.stdout == "open\n", done.stderr


def killed() -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return 0


def endless() -> int:
    while True:
        signal.pause()


def test_limited_child_returns_its_status_or_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert children.run_limited(lambda: 7, SAFETY_SECONDS, sharing=False) == 7
    assert children.run_limited(killed, SAFETY_SECONDS, sharing=False) == -signal.SIGKILL
    clock = Clock()
    monkeypatch.setattr(children, "time", clock)
    began = clock.now
    assert children.run_limited(endless, 60, sharing=False) is None
    assert clock.now - began == pytest.approx(60, abs=0.1)
    assert children.run_limited(endless, 60, sharing=False, stopped=lambda: True) is None
    assert clock.now - began == pytest.approx(60, abs=0.1), "it was not waited for"


WAKING = """
import os, signal
from tracer.process import children
reading, writing = os.pipe2(os.O_NONBLOCK)
signal.set_wakeup_fd(writing)
for sharing in (True, False):
    status = children.run_limited(
        lambda: signal.set_wakeup_fd(-1) != -1, {seconds}, sharing=sharing
    )
    assert status == 0
"""


def test_signal_does_not_wake_a_limited_child_by_a_number_that_may_be_a_file() -> None:
    """In a process of its own: matplotlib closes its fonts in a child, here those of both."""
    script = WAKING.format(seconds=SAFETY_SECONDS)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_fork_that_fails_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    sighand = 0x800  # without CLONE_VM: EINVAL
    monkeypatch.setattr(children, "clone_arguments", lambda *_: (sighand, 0, 0, 0, 0))
    with pytest.raises(OSError, match="the kernel makes no new process: Invalid argument") as found:
        children.fork_sharing_files()
    assert found.value.errno == errno.EINVAL


def test_main_thread_has_its_state_and_cpu_time_and_a_process_that_is_gone_none() -> None:
    process = os.fork()
    if not process:
        endless()
    try:
        until(lambda: (found := children.main_thread(process)) and found.state == "S")
        found = children.main_thread(process)
        assert found
        assert found.cpu_seconds < 5
        assert not found.exiting
    finally:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
    assert children.main_thread(1 << 22) is None


def test_main_thread_is_told_in_time_where_the_reader_of_its_stack_cannot_be_killed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The checker dies by a BUG, and whoever reads its stack spins in the kernel."""
    readers, kill, read = list[int](), os.kill, Path.read_text

    def read_text(path: Path) -> str:
        if path.name == "stack":
            endless()
        return read(path)

    monkeypatch.setattr(Path, "read_text", read_text)
    monkeypatch.setattr(os, "kill", lambda process, _: readers.append(process))
    began = time.monotonic()
    try:
        found = children.main_thread(os.getpid(), 0.2)
        assert time.monotonic() - began < 30, "the reader lives on"
        assert found
        assert (found.exiting, found.functions) == (False, ())
    finally:
        (reader,) = readers
        kill(reader, signal.SIGKILL)
        os.waitpid(reader, 0)


def test_process_whose_main_thread_exited_is_exiting() -> None:
    process = os.fork()
    if not process:
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
        ctypes.CDLL(None).syscall(60, 0)  # exit(2), of this thread only
    try:
        until(lambda: (found := children.main_thread(process)) and found.exiting)
        assert children.exit_status(process) is None, "another thread keeps it from being reaped"
    finally:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)


def test_command_that_survives_sigkill_is_abandoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Like a task in D state, on which signals have no effect."""
    command = Command(["sleep", "60"], 0.1)
    command.start()
    assert command.process
    process = command.process
    clock = Clock()
    monkeypatch.setattr(command_module, "time", clock)
    sent = list[int]()
    monkeypatch.setattr(process, "send_signal", sent.append)
    monkeypatch.setattr(process, "kill", lambda: sent.append(signal.SIGKILL))
    command.terminate(signal.SIGTERM)
    began = clock.now
    command.wait(10)
    took = clock.now - began
    assert took == pytest.approx(1.1, abs=0.05), "the grace period, and a second after SIGKILL"
    assert sent == [signal.SIGTERM, signal.SIGKILL]
    outcome = command.outcome(124, {"reason": "time"})
    assert (outcome.exit_code, outcome.code, outcome.ended) == (
        None,
        124,
        "it did not end, even after SIGKILL",
    )
    command.close_handles()
    os.kill(process.pid, signal.SIGKILL)
    os.waitpid(process.pid, 0)
    process.returncode = 0


def test_command_that_cannot_run_raises_with_its_exit_code(tmp_path: Path) -> None:
    for argv, kind, code in (
        ([str(tmp_path / "none")], NotFound, 127),
        ([str(tmp_path)], NotRunnable, 126),
        (["a\0b"], NotRunnable, 126),
    ):
        with pytest.raises(kind) as error:
            Command(argv, 1).start()
        assert error.value.exit_code == code


def test_command_ends_while_a_child_goes_on_without_its_output(tmp_path: Path) -> None:
    """Were the child's output still the command's, run() would wait for it, and it for us."""
    script = (
        "import sys, time, pathlib; from tracer.process.children import go_on_in_background;"
        " ended, done = map(pathlib.Path, sys.argv[1:]); print('report'); go_on_in_background();"
        " print('unseen')\n"
        "while not ended.exists(): time.sleep(0.01)\n"
        "done.touch()"
    )
    files = [tmp_path / "ended", tmp_path / "done"]
    ended = subprocess.run(
        [sys.executable, "-c", script, *files],
        capture_output=True,
        text=True,
        check=True,
        timeout=SAFETY_SECONDS,
    )
    assert (ended.stdout, ended.stderr) == ("report\n", "")
    files[0].touch()
    until(files[1].exists)
