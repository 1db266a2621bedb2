"""What the daemon gives up after attaching, read from /proc, and that nothing of its work is lost by it."""

from __future__ import annotations

import importlib.util
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.live.conftest import daemon, entries_hold, judge_of, loaded_by, rmapd, sample, still_loaded

SETS = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
FILTERED = importlib.util.find_spec("seccomp") is not None


def status(of: Path) -> dict[str, str]:
    return {key: value.strip() for key, _, value in (line.partition(":") for line in (of / "status").read_text().splitlines())}


def threads(pid: int) -> list[dict[str, str]]:
    return [status(task) for task in Path(f"/proc/{pid}/task").iterdir()]


def coverage(process: subprocess.Popen[str]) -> str:
    """Ends the daemon and gives what it said of coverage."""
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    assert process.stderr
    (said,) = (line.partition(" INFO ")[2] for line in process.stderr.read().splitlines() if " INFO coverage: " in line)
    return said


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "rmapd.toml"
    path.write_text("patrol_seconds = 2.0\n")
    path.chmod(0o600)
    return path


def test_a_judging_daemon_has_no_privileges_and_judges_on(config: Path) -> None:
    with daemon("--config", str(config)) as (process, url):
        found = threads(judge_of(process.pid))
        assert len(found) > 1, "the server's thread is among them"
        found += threads(process.pid)  # the supervisor's one
        for one in found:
            assert {int(one[name], 16) for name in SETS} == {0}, one
            assert one["NoNewPrivs"] == "1"
            assert one["Seccomp"] == ("2" if FILTERED else "0")
        sweeps, cleared = 'rmapd_oracle_questions_total{kind="sweeps"}', 'rmapd_migration_entries_total{event="cleared_by_oracle"}'
        before = {name: sample(url, name) for name in (sweeps, cleared)}
        for _ in range(30):  # until an entry is zapped in mid-migration
            entries_hold(url, 5000)
            if sample(url, cleared) > before[cleared]:
                break
        assert sample(url, cleared) > before[cleared], "the oracle still reads page tables"
        assert sample(url, sweeps) > before[sweeps], "and searches them"
        assert sample(url, 'rmapd_checks_total{invariant="M1",verdict="suspect"}') == 0
        assert sample(url, 'rmapd_checks_total{invariant="M1",verdict="unverifiable"}') == 0
        assert sample(url, 'rmapd_probe_runs_total{hook="set_migration_pte"}') > 5000, "the kernel's statistics"
        config.write_text("patrol_seconds = 3.0\n")
        process.send_signal(signal.SIGHUP)
        time.sleep(2)
        assert sample(url, "rmapd_oracle_ready") == 1
        programs = loaded_by(process.pid)
        assert len(programs) > 10
        dropped = coverage(process)
    assert not still_loaded(programs)
    config.write_text("patrol_seconds = 2.0\ndrop_privileges = false\n")
    with daemon("--config", str(config)) as (process, _):
        judge = judge_of(process.pid)
        assert all(int(one["CapEff"], 16) == int(status(Path("/proc/self"))["CapEff"], 16) for one in threads(judge))
        assert threads(judge)[0]["NoNewPrivs"] == "0"
        assert coverage(process) == dropped


def test_the_configuration_is_read_again_without_privileges(config: Path) -> None:
    with daemon("--config", str(config)) as (process, _):
        config.write_text("patrol_seconds = 7.0\n")
        process.send_signal(signal.SIGHUP)
        time.sleep(2.5)
        config.rename(config.with_suffix(".gone"))
        process.send_signal(signal.SIGHUP)
        time.sleep(2.5)
        process.terminate()
        assert process.wait(30) == 0
        assert process.stderr
        said = process.stderr.read()
    assert "configuration read again: welcome_seconds 10, settle_seconds 5, patrol_seconds 7" in said
    assert "the configuration stays as it was: cannot read the configuration" in said


def test_exec_runs_its_command_with_all_that_its_caller_has() -> None:
    done = rmapd("exec", "--", "grep", "-E", "^(CapEff|CapBnd|NoNewPrivs):", "/proc/self/status")
    own = status(Path("/proc/self"))
    said = {key: value.strip() for key, _, value in (line.partition(":") for line in done.stdout.splitlines()[:3])}
    assert said == {name: own[name] for name in ("CapEff", "CapBnd", "NoNewPrivs")}
