"""rmapd soak on this kernel: silent, violated, stopped and killed; nothing of a load remains."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.live.conftest import rmapd
from tests.live.test_death import executing
from tests.live.test_exec_beside import recorder, recording
from tests.support.daemons import RMAPD, child_of, own_programs, remaining, until
from tests.support.rehearsal import WindowRecorder, make
from tests.support.violations import VIOLATING, variant

__all__ = ["recording"]  # a fixture

KSM = Path("/sys/kernel/mm/ksm/run")
RUNNER = b"tracer.soak.runner"


def command_lines() -> Iterator[tuple[int, bytes]]:
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            yield int(folder.name), (folder / "cmdline").read_bytes()


def runners() -> list[int]:
    """Return the processes of loads: the runner, and all that it forked."""
    return [
        pid
        for pid, words in command_lines()
        if RUNNER in words.split(b"\0") and b"exec" not in words.split(b"\0")
    ]


def nothing_is_left(soak: int) -> None:
    until(lambda: not runners(), 30, "all processes of the load are gone")
    assert "rmapd-soak" not in Path("/proc/mounts").read_text()
    assert not [*Path("/sys/fs/cgroup").glob(f"**/rmapd-soak-{soak}")]
    assert not remaining()


def loaded() -> bool:
    """Return whether a load runs: more than its outer process, its first one and one worker."""
    return len(runners()) > 3


@contextlib.contextmanager
def soaking(
    out: Path, *args: str, runs: Callable[[], bool] = loaded
) -> Iterator[subprocess.Popen[str]]:
    """Start a soak, and yield it once its load runs."""
    with subprocess.Popen(
        [RMAPD, "soak", "--out", str(out), *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            until(lambda: runs() or process.poll() is not None, 120, "the load runs")
            assert process.poll() is None, process.communicate()
            yield process
        finally:
            process.kill()


def result(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def test_storms_of_vmas_are_silent_here_and_two_soaks_compare(tmp_path: Path) -> None:
    out = tmp_path / "a.json"
    done = rmapd("soak", "--for", "20s", "--load", "vma", "--out", str(out), "--seed", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    found = result(out)
    (run,) = found["runs"]
    assert (run["outcome"], run["violations"], run["daemon"]) == ("silent", [], False)
    assert 20 <= run["seconds"] < 25
    assert run["checks"]["holds"] > 1000
    assert (run["checks"]["violated"], run["checks"]["suspect"]) == (0, 0)
    assert run["coverage"]["V4"] == "full"
    assert run["fidelity"] == "full"
    for part in run["parts"]:
        if part["name"] != "vma.stress-ng":  # one of its rounds takes ten seconds
            assert part["done"] > 0, part
        assert part["killed"] == {}, part
    assert (found["kernel"], found["seed"]) == (os.uname().release, 1)
    assert found["statistics"]["watched_seconds"] == run["seconds"]
    assert "nothing violated in 2" in done.stdout
    nothing_is_left(0)
    compared = rmapd("diff", str(out), str(out))
    assert (compared.returncode, "neither is violated" in compared.stdout) == (4, True)


def test_violation_ends_the_run_and_is_timed(
    tmp_path: Path, recording: tuple[subprocess.Popen[str], str]
) -> None:
    """The daemon that runs is used. Its window probes let this test make up a violation."""
    programs = sorted(own_programs())
    out = tmp_path / "a.json"
    with soaking(out, "--until-violation", "--load", "vma", "--daemon", "only") as process:
        began = time.monotonic()
        time.sleep(5)
        with recorder() as record:
            record("L3", 1)
        strike = time.monotonic() - began
        stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 3, stdout + stderr
    assert time.monotonic() - began < 60
    found = result(out)
    (run,) = found["runs"]
    assert (run["outcome"], run["daemon"], run["at_once"]) == ("violated", True, False)
    assert strike - 0.5 < run["seconds"] < strike + 10, "from the load's start, a moment before"
    assert [one["invariant"] for one in run["violations"]] == ["L3"]
    assert json.loads(Path(run["report"]).read_text())["violations"][0]["trail"]
    assert found["statistics"]["violated"] == 1
    assert f"L3 ×1 [{run['violations'][0]['id']}]" in stdout
    assert sorted(own_programs()) == programs, "nothing was attached a second time"
    assert not runners()


def test_exec_that_attaches_ends_its_command_at_a_violation(tmp_path: Path) -> None:
    altered = (sys.executable, "-m", "tests.support.altered", str(make(tmp_path / "probes")), "{}")
    options = ("--until-violation", "--format", "json", "--", "sleep", "100")
    with executing(*options, command=altered) as process:
        until(lambda: child_of(process.pid, "sleep"), 60, "the command is started")
        with contextlib.closing(WindowRecorder.find()) as found:
            found.record(variant(VIOLATING["L3"], 0))
        stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 3, stderr
    report = json.loads(stdout)
    assert (report["exit"]["source"], report["command"]["signal"]) == ("violation", "SIGTERM")
    assert "ended_early" not in report
    assert not remaining()


def test_signal_ends_the_load_and_takes_all_of_it_back(tmp_path: Path) -> None:
    before = KSM.read_text()
    for number in (signal.SIGINT, signal.SIGTERM):
        out = tmp_path / f"{number}.json"
        with soaking(out, "--for", "100s", "--load", "vma,thp") as process:
            assert KSM.read_text() == "1\n"
            process.send_signal(number)
            stdout, stderr = process.communicate(timeout=90)
        assert process.returncode == 128 + number, stdout + stderr
        (run,) = result(out)["runs"]
        assert run["outcome"] == "cut"
        assert run["why"] == f"{signal.Signals(number).name} arrived"
        assert 0 < run["seconds"] < 60
        assert KSM.read_text() == before
        nothing_is_left(process.pid)


def test_kernels_own_tests_leave_no_files_and_no_settings(tmp_path: Path) -> None:
    """They write to /tmp, and change what huge pages do; one whose time is over is killed."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        pages = Path("/sys/kernel/mm/transparent_hugepage/khugepaged/pages_to_scan")
        before = pages.read_text()
        mark = f"rmapd-test-{os.getpid()}"
        program = Path(folder, "rmap")
        program.write_text(
            f"#!/bin/sh\ntouch /tmp/{mark} && echo 1234 > {pages} && ls {folder}/rmap && exit 0"
        )
        program.chmod(0o755)
        options = ("--for", "5s", "--load", "selftests", "--selftests", folder)
        out = tmp_path / "a.json"
        args = (*options, "--daemon", "never")
        # The one worker's programs end at once, so its processes cannot tell that the load runs.
        with soaking(out, *args, runs=lambda: pages.read_text() == "1234\n") as process:
            assert process.wait(120) == 0, process.communicate()
        (run,) = result(out)["runs"]
        (part,) = run["parts"]
        assert (part["done"] > 0, part["failed"]) == (True, 0), part
        assert not Path("/tmp", mark).exists()
        assert pages.read_text() == before
        nothing_is_left(process.pid)


def test_load_that_is_killed_is_not_called_silent(tmp_path: Path) -> None:
    out = tmp_path / "a.json"
    with soaking(out, "--for", "100s", "--load", "vma,thp") as process:
        outer = min(runners())
        os.kill(outer, signal.SIGKILL)
        stdout, stderr = process.communicate(timeout=90)
    assert process.returncode == 125, stdout + stderr
    (run,) = result(out)["runs"]
    assert (run["outcome"], "the load failed" in run["why"]) == ("lost", True)
    assert KSM.read_text() != "1\n"
    nothing_is_left(process.pid)


def test_load_ends_with_the_soak_that_is_killed(tmp_path: Path) -> None:
    out = tmp_path / "a.json"
    with soaking(out, "--until-violation", "--load", "vma,thp") as process:
        process.kill()
        process.wait()
        nothing_is_left(process.pid)
    (run,) = result(out)["runs"]
    assert run["outcome"] == "unfinished"
    assert KSM.read_text() != "1\n"
