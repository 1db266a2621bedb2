"""The checker dies, hangs or is killed: its results are reported, and nothing stays attached.

RMAPD_KILLS=200 runs more rounds of the first test.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.live.conftest import WORKLOAD, daemon
from tests.support.daemons import RMAPD, checker_of, child_of, remaining, until
from tests.support.rehearsal import WindowRecorder, make
from tests.support.violations import ENCODING, VIOLATING, variant
from tracer.outputs.store import reader
from tracer.protocol.text import text

ROUNDS = int(os.environ.get("RMAPD_KILLS", "6"))
SEED = int(os.environ.get("RMAPD_SEED", str(time.time_ns())))
EXIT_OF_MAIN_THREAD = """
import ctypes, sys
from tracer import cli
from tracer.daemon import session
step, left = session.Session.step, [5]
def exiting(self, *args):
    left[0] -= 1
    return step(self, *args) if left[0] else ctypes.CDLL(None).syscall(60, 0)
session.Session.step = exiting
cli.main(sys.argv[1:], prog_name="rmapd")
"""


@contextlib.contextmanager
def executing(
    *args: str, command: tuple[str, ...] = (RMAPD,), env: dict[str, str] | None = None
) -> Iterator[subprocess.Popen[str]]:
    environment = {**os.environ, **(env or {})}
    with subprocess.Popen(
        [*command, "exec", *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@contextlib.contextmanager
def migrating() -> Iterator[None]:
    """Compact memory, fork, map and exit while the context is open."""
    with subprocess.Popen(
        [*WORKLOAD, "10000000"], stdout=subprocess.DEVNULL, start_new_session=True
    ) as load:
        try:
            yield
        finally:
            os.killpg(load.pid, signal.SIGKILL)


def started(process: subprocess.Popen[str], command: str = "sleep") -> None:
    """Wait until the command runs: the gate is open then."""
    runs = until(
        lambda: child_of(process.pid, command) or process.poll() is not None,
        60,
        f"{command} is started",
    )
    assert process.poll() is None, (runs, process.communicate())


def read(report: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(report.read_text())
    return found


class Violations:
    """A thread that records violating windows in quick succession; counts: how often each."""

    def __init__(self, recorder: WindowRecorder) -> None:
        self.counts: Counter[str] = Counter()
        self._recorder, self._stop = recorder, threading.Event()
        self._thread = threading.Thread(target=self._work)
        self._thread.start()

    def _work(self) -> None:
        number = 0
        while not self._stop.is_set():
            for line in VIOLATING.values():
                key = variant(line, number // 3 % 256)
                self._recorder.record(key)
                self.counts[text(ENCODING.decode(key))] += 1
            number += 1
            time.sleep(random.random() / 100)

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()


def test_everything_recorded_is_reported_after_checker_is_killed(tmp_path: Path) -> None:
    print("seed", SEED)
    chance = random.Random(SEED)
    altered, report = (
        (sys.executable, "-m", "tests.support.altered", str(make(tmp_path / "probes")), "{}"),
        tmp_path / "r.json",
    )
    figures: Counter[str] = Counter()
    for _ in range(ROUNDS):
        report.unlink(missing_ok=True)
        with (
            executing("--report", str(report), "--", "sleep", "60", command=altered) as process,
            migrating(),
        ):
            started(process)
            with contextlib.closing(WindowRecorder.find()) as recorder:
                violations = Violations(recorder)
                time.sleep(chance.uniform(0, 1.5))
                violations.stop()
                os.kill(checker_of(process.pid), signal.SIGKILL)
                output, errors = process.communicate(timeout=60)
        assert process.returncode == 71, errors
        found = read(report)
        assert found["ended_early"]["signal"] == "SIGKILL", found["ended_early"]
        assert found["ended_early"]["detached"] is True
        assert (found["exit"]["code"], found["exit"]["source"]) == (71, "checker")
        assert "ENDED EARLY: the checker died: killed by SIGKILL" in output
        counted = {
            v["protocol"]: v["count"] for v in found["violations"] if v["verdict"] == "violated"
        }
        unread = set(violations.counts) - set(counted)
        assert not unread, "every violation is found"
        assert counted == violations.counts, "as often as it was recorded"
        ledger, m1 = found["migration"], found["invariants"]["M1"]["checks"]
        assert ledger["entries_recorded"] + ledger["entries_copied"] == sum(m1.values()), (
            ledger,
            m1,
        )
        assert m1["violated"] == 0
        assert ledger["outstanding"] <= m1["unverifiable"], (
            "their migration was under way when the gate closed"
        )
        assert (found["lost"]["ledger"], found["lost"]["protocols"]) == (0, 0)
        figures += Counter(
            kills=1,
            violations=sum(counted.values()),
            signatures=len(counted),
            entries=sum(m1.values()),
            unverifiable=m1["unverifiable"],
        )
        print(dict(figures), flush=True)
    assert not remaining()


def test_report_is_written_if_checker_dies_while_attaching(tmp_path: Path) -> None:
    report = tmp_path / "r.json"
    with executing("--report", str(report), "--", "sleep", "60") as process:
        os.kill(until(lambda: checker_of(process.pid), 10, "there is a checker"), signal.SIGKILL)
        process.communicate(timeout=60)
    assert process.returncode == 71
    assert read(report)["command"]["ended"] == "it was not started"
    assert read(report)["ended_early"]["reason"] == "the checker died: killed by SIGKILL"
    assert not remaining()


def test_checker_that_hangs_is_killed_and_reported(tmp_path: Path) -> None:
    """The limit is above what a start takes on a busy machine: it would end such a start."""
    report = tmp_path / "r.json"
    with executing(
        "--report", str(report), "--", "sleep", "120", env={"RMAPD_HANG_SECONDS": "20"}
    ) as process:
        started(process)
        os.kill(checker_of(process.pid), signal.SIGSTOP)
        began = time.monotonic()
        process.communicate(timeout=60)
    assert process.returncode == 71
    assert 18 < time.monotonic() - began < 40
    assert read(report)["ended_early"]["reason"].startswith(
        "the checker died: no sign of life for "
    )
    assert "(state T, 0 s of CPU, in " in read(report)["ended_early"]["reason"], "a stopped process"
    assert read(report)["command"]["exit_code"] == 143
    assert not remaining()


def test_checker_whose_main_thread_is_gone_is_detached(tmp_path: Path) -> None:
    """After a BUG the main thread is a zombie while another thread lives.

    The checker is detached all the same.
    """
    report, checker = tmp_path / "r.json", 0
    try:
        with executing(
            "--report",
            str(report),
            "--",
            "sleep",
            "60",
            command=(sys.executable, "-c", EXIT_OF_MAIN_THREAD),
        ) as process:
            started(process)
            checker = checker_of(process.pid)
            process.communicate(timeout=60)
        assert process.returncode == 71
        assert (
            read(report)["ended_early"]["reason"]
            == "the checker died: the kernel killed its main thread, and the process stays"
        )
        assert read(report)["invariants"]["M1"]["coverage"] == "partial"
        assert (
            Path(f"/proc/{checker}/task/{checker}/stat").read_text().rpartition(") ")[2][0] == "Z"
        )
        assert len(list(Path(f"/proc/{checker}/task").iterdir())) == 2
        assert not remaining()
    finally:
        if checker:
            os.kill(checker, signal.SIGKILL)


def test_results_are_reported_if_the_process_after_the_checker_dies_too(tmp_path: Path) -> None:
    """The report contains the findings of the checker until it died."""
    altered = (
        "import os, sys; from tracer.daemon import after_death; "
        "after_death.find_remains = lambda *_: os.kill(os.getpid(), 9); "
        "from tests.support import altered; altered.main(*sys.argv[1:])"
    )
    report, command = (
        tmp_path / "r.json",
        (sys.executable, "-c", altered, str(make(tmp_path / "probes")), "{}"),
    )
    with executing("--report", str(report), "--", "sleep", "60", command=command) as process:
        started(process)
        with contextlib.closing(WindowRecorder.find()) as recorder:
            recorder.record(variant(VIOLATING["L3"], 0))
            time.sleep(2)
        os.kill(checker_of(process.pid), signal.SIGKILL)
        output = process.communicate(timeout=60)[0]
    assert process.returncode == 71
    assert [(v["invariant"], v["count"]) for v in read(report)["violations"]] == [("L3", 1)]
    assert read(report)["ended_early"]["after_death"] == "it ended with -9"
    assert "VIOLATED L3" in output
    assert not remaining()


@pytest.mark.parametrize("both", [False, True])
def test_checker_reports_when_its_supervisor_dies(tmp_path: Path, both: bool) -> None:
    report = tmp_path / "r.json"
    with executing("--report", str(report), "--", "sleep", "3") as process:
        started(process)
        checker = checker_of(process.pid)
        process.kill()
        if both:
            os.kill(checker, signal.SIGKILL)
        process.wait(10)
    assert not remaining()
    if not both:
        until(report.exists, 20, "the checker reports")
        assert read(report)["ended_early"]["reason"] == "the supervising process died"


def test_supervisor_stores_the_results_of_a_killed_daemon(reachable: Path) -> None:
    """Stored counts are not stored twice, and the others are not lost."""
    altered, path = (
        (sys.executable, "-m", "tests.support.altered", str(make(reachable / "probes")), "{}"),
        reachable / "rmapd.db",
    )
    chance, key = random.Random(SEED), variant(VIOLATING["L3"], 0)
    for round_ in range(3):
        with (
            daemon("--store", str(path), command=altered) as (process, _),
            contextlib.closing(WindowRecorder.find()) as recorder,
        ):
            time.sleep(chance.uniform(0, 2))
            for _ in range(100):
                recorder.record(key)
                time.sleep(chance.uniform(0, 0.02))
            checker = checker_of(process.pid)
            os.kill(checker, signal.SIGKILL)
            _, output = process.communicate(timeout=60)
        assert process.returncode == 71, output
        assert "found after a crash: the checker died: killed by SIGKILL: 100 violated" in output
        found = reader.read(path)
        assert [(v["invariant"], v["count"]) for v in found.violations] == [
            ("L3", 100 * (round_ + 1))
        ]
        assert len(found.runs) == round_ + 1
        assert found.runs[-1]["ended"]
        assert (
            found.runs[-1]["report"]["ended_early"]["reason"]
            == "found after a crash: the checker died: killed by SIGKILL"
        )
        assert not remaining()


def test_daemon_ends_when_its_supervisor_is_killed() -> None:
    with daemon() as (process, _):
        checker = checker_of(process.pid)
        process.kill()
        until(lambda: not Path(f"/proc/{checker}").exists(), 20, "the checker ends, too")
    assert not remaining()
