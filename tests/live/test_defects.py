"""A failing daemon logs the reason and exits with a code at which systemd restarts it.

No program stays attached.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.live.conftest import rmapd
from tests.support.daemons import remaining

RUN = (
    "cli.main(['run', '--listen', '127.0.0.1:0', '--store', '', '--duration', '20'],"
    " prog_name='rmapd')"
)
FAIL = "def fail(*_, **__): raise ZeroDivisionError('day 30')\n"
FAILING = {
    "the checking loop": f"from tracer.daemon import session\n{FAIL}session.Session.step = fail",
    "the server's thread": (
        "from tracer.web import server\n"
        "async def fail(_): 1 / 0 * len('day 30')\n"
        "server.Server._accept = fail"
    ),
    "the store": f"from tracer.outputs import sinks\n{FAIL}sinks.Sinks.deliver = fail",
    "attaching": f"from tracer.attach import loader\n{FAIL}loader.load = fail",
}


def run(before: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "RMAPD_DEBUG"}
    script = f"from tracer import cli\n{before}\n{RUN}"
    return subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env=environment,
    )


@pytest.mark.parametrize("where", FAILING)
def test_defect_is_exit_70_with_a_traceback(where: str) -> None:
    done = run(FAILING[where])
    assert done.returncode == 70, done.stderr
    assert "Traceback (most recent call last)" in done.stderr
    assert "ZeroDivisionError: " in done.stderr
    assert where != "the server's thread" or "gate closed, detached on signal 15" in done.stderr, (
        "the checking loop ends as on SIGTERM"
    )
    if where == "the checking loop":
        assert "found after a crash: the checker died: exit status 70" in done.stderr
    assert not remaining()


@pytest.mark.parametrize(
    "before",
    [
        (
            "import os\n"
            "from tracer.attach import attach_process\n"
            "attach_process._serve = lambda *_: os.kill(os.getpid(), 9)"
        ),
        (
            "from tracer.attach import loader\n"
            "def load_program(*_): raise OSError(12, 'Cannot allocate memory')\n"
            "loader.load_program = load_program"
        ),
        (
            "from tracer.attach import compiler, loader\n"
            "def fail(*_): raise MemoryError\n"
            "loader.compile_text = fail"
        ),
    ],
)
def test_lack_of_memory_is_exit_75(before: str) -> None:
    done = run(before)
    assert done.returncode == 75, done.stderr
    assert "try: the same again later" in done.stderr
    assert not remaining()


def test_daemon_continues_when_stdout_is_full(tmp_path: Path) -> None:
    script = (
        "from tracer import cli; from tracer.outputs import log\n"
        "from tests.support.snapshots import FINDING\n"
        "from tracer.invariants.verdict import Violation\n"
        "from tracer.outputs import sinks\n"
        "deliver = sinks.Sinks.deliver\n"
        "def deliver_and_log(self, *a, **k):\n"
        "    self._journal.new([Violation(FINDING, 1.0, 2.0)])\n"
        "    return deliver(self, *a, **k)\n"
        "sinks.Sinks.deliver = deliver_and_log\n"
        "from tracer import outcome\n"
        "outcome.install_stdout()\n" + RUN.replace("'20'", "'2'")
    )
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-c", script],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            timeout=120,
        )
    assert done.returncode == 0, done.stderr
    assert "cannot write a finding to stdout" in done.stderr
    assert "gate closed" in done.stderr


def test_report_is_saved_elsewhere_when_its_folder_is_deleted(tmp_path: Path) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    done = rmapd(
        "exec",
        "--report",
        str(folder / "r.json"),
        "--",
        "rm",
        "-rf",
        str(folder),
        env={"TMPDIR": str(tmp_path)},
    )
    assert f"cannot write the report {folder / 'r.json'}: No such file or directory" in done.stderr
    kept = Path(done.stderr.rpartition("it is saved in ")[2].strip())
    assert json.loads(kept.read_text())["command"]["argv"][0] == "rm"
