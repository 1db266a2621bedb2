"""`rmapd exec` ends by its timeout or by a signal at any moment, whatever its command does.

It has the exit codes of env(1) and timeout(1).
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from tests.live.conftest import rmapd, run_exec
from tests.live.test_death import executing, read, started
from tests.support.daemons import remaining, until
from tests.support.rehearsal import WindowRecorder, make
from tests.support.violations import VIOLATING, variant

IGNORES_SIGNALS = ["sh", "-c", "trap '' TERM INT HUP; exec sleep 60"]


def test_endless_command_is_killed_after_timeout_and_grace(tmp_path: Path) -> None:
    done, report = run_exec(tmp_path, "--timeout", "0.5", command=["sleep", "60"])
    assert done.returncode == 124, done.stderr
    assert report["exit"] == {
        "code": 124,
        "reason": "the command's time was over (--timeout 0.5)",
        "source": "timeout",
    }
    assert report["ended_early"] == {"reason": "the command's time was over (--timeout 0.5)"}
    assert report["command"] == {
        "argv": ["sleep", "60"],
        "exit_code": 143,
        "exit_status": None,
        "signal": "SIGTERM",
        "ended": "killed by SIGTERM",
    }
    assert report["invariants"]["M1"]["coverage"] == "partial"
    assert done.stdout.startswith("ENDED EARLY: the command's time was over")
    began = time.monotonic()
    done, report = run_exec(tmp_path, "--timeout", "0.5", "--grace", "1", command=IGNORES_SIGNALS)
    assert done.returncode == 124
    assert time.monotonic() - began < 20
    assert report["command"]["ended"] == "killed by SIGKILL"
    assert not remaining()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signal_ends_exec_with_a_report(tmp_path: Path, number: signal.Signals) -> None:
    report = tmp_path / "r.json"
    with executing("--report", str(report), "--", "sleep", "60") as process:
        started(process)
        process.send_signal(number)
        output, errors = process.communicate(timeout=30)
    assert process.returncode == 128 + number, errors
    assert output.startswith(
        f"ENDED EARLY: {number.name} arrived; the command: killed by {number.name}\n"
    )
    assert read(report)["ended_early"] == {
        "reason": f"{number.name} arrived",
        "signal": number.name,
    }
    assert read(report)["command"]["exit_code"] == 128 + number, (
        "the signal is passed on to the command"
    )
    assert "Traceback" not in errors


def handles(process: subprocess.Popen[str], number: signal.Signals) -> bool:
    """Whether a process has a handler for a signal: SigCgt of /proc/PID/status."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    caught = next(line.split()[1] for line in status.splitlines() if line.startswith("SigCgt"))
    return bool(int(caught, 16) >> (number - 1) & 1)


def test_signal_before_the_gate_is_open_ends_exec_with_a_report(tmp_path: Path) -> None:
    """A Python that is still starting, and slowly with coverage, has no handler yet."""
    report = tmp_path / "r.json"
    for delay in (0.0, 0.15, 0.35, 0.55):
        report.unlink(missing_ok=True)
        with executing("--report", str(report), "--", "sleep", "60") as process:
            until(partial(handles, process, signal.SIGTERM), 30, "no handler of SIGTERM")
            time.sleep(delay)
            process.send_signal(signal.SIGTERM)
            _, errors = process.communicate(timeout=30)
        assert process.returncode == 143, errors
        assert "SIGTERM arrived" in read(report)["ended_early"]["reason"]
        assert "Traceback" not in errors
    assert not remaining()


def test_second_signal_ends_exec_at_once_without_a_report(tmp_path: Path) -> None:
    report = tmp_path / "r.json"
    with executing("--report", str(report), "--grace", "50", "--", *IGNORES_SIGNALS) as process:
        started(process)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        began = time.monotonic()
        process.communicate(timeout=10)
    assert (process.returncode, report.exists()) == (130, False)
    assert time.monotonic() - began < 5
    assert not remaining()


def test_missing_command_is_exit_127_and_unexecutable_one_126(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for command, code in (
        ("/nonexistent/command", 127),
        ("no-such-command-anywhere", 127),
        (str(folder), 126),
        ("/etc/passwd", 126),
    ):
        done = rmapd("exec", "--", command)
        assert (
            done.returncode,
            f"cannot run {command}" in done.stderr,
            "Traceback" in done.stderr,
        ) == (code, True, False), done.stderr
    assert not remaining()


def test_violation_exit_code_is_distinct_from_the_commands_own(tmp_path: Path) -> None:
    done, report = run_exec(tmp_path, command=["sh", "-c", "exit 3"])
    own = {"code": 3, "reason": "the command's own", "source": "command"}
    assert (done.returncode, report["exit"]) == (3, own)
    altered, out = (
        (sys.executable, "-m", "tests.support.altered", str(make(tmp_path / "probes")), "{}"),
        tmp_path / "r.json",
    )
    with executing(
        "--report",
        str(out),
        "--violation-exit-code",
        "99",
        "--timeout",
        "2",
        "--",
        "sleep",
        "60",
        command=altered,
    ) as process:
        started(process)
        with contextlib.closing(WindowRecorder.find()) as recorder:
            recorder.record(variant(VIOLATING["L3"], 0))
        process.communicate(timeout=30)
    assert process.returncode == 99, "a violation comes before the timeout"
    assert read(out)["exit"] == {
        "code": 99,
        "reason": "violated (--fail-on)",
        "source": "violation",
    }
    assert read(out)["ended_early"]["reason"].startswith("the command's time was over")
