"""Loss, and attacks on the checker itself, on this kernel: nothing is accused, losses show, the daemon lives and leaves nothing behind.

Those that need kprobes, or a machine that may be hurt, are in tests/vm/test_attacks.py.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.live.conftest import (
    ROOT,
    WORKLOAD,
    daemon,
    fetch,
    judge_of,
    loaded_by,
    rmapd,
    run_exec,
    sample,
    still_loaded,
)
from tracer.attach.liveness import LivenessCheck
from tracer.attach.plan import HookState
from tracer.config import Config, load
from tracer.daemon.session import Session, running_kernel
from tracer.invariants.base import Coverage

CROWD = [sys.executable, "-m", "tests.workloads.crowd"]
CHECKS = 'rmapd_checks_total{{invariant="{}",verdict="{}"}}'


def accused(found: dict[str, Any]) -> dict[str, Any]:
    """What is violated or suspect, which must be nothing."""
    wrong = {
        name: one["checks"]
        for name, one in found["invariants"].items()
        if one["checks"]["violated"] or one["checks"]["suspect"]
    }
    return wrong | {violation["signature"]: violation for violation in found["violations"]}


@pytest.fixture(autouse=True)
def _in_the_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def test_tiny_maps_and_a_tiny_ring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, rows in {
        "LEDGER": 16,
        "FROZEN": 1,
        "VISIT": 2,
        "MIGRATION": 1,
        "MM": 1,
        "ORDER": 1,
        "HOLD": 1,
        "PROTOCOL": 2,
    }.items():
        monkeypatch.setenv(f"RMAPD_MAPS_{name}_ROWS", str(rows))
    monkeypatch.setenv("RMAPD_MAPS_RING_PAGES", "1")
    done, found = run_exec(tmp_path, command=[*WORKLOAD, "100000"])
    assert done.returncode == 0, done.stderr
    assert not accused(found)
    assert found["lost"]["ledger"] > 100
    assert found["invariants"]["M1"]["checks"]["unverifiable"] >= 100
    assert found["invariants"]["M1"]["checks"]["holds"] > 100
    assert found["oracle"]["ready"]


def test_a_daemon_that_is_stopped_for_half_a_minute_under_load() -> None:
    with daemon() as (process, url):
        held = loaded_by(process.pid)
        load_ = subprocess.Popen([*WORKLOAD, "1000000"], stdout=subprocess.DEVNULL)
        try:
            time.sleep(3)
            before = sample(url, CHECKS.format("M1", "holds"))
            os.kill(judge_of(process.pid), signal.SIGSTOP)
            time.sleep(30)
            os.kill(judge_of(process.pid), signal.SIGCONT)
            time.sleep(10)
        finally:
            load_.terminate()
            load_.wait()
        time.sleep(3)
        assert sample(url, CHECKS.format("M1", "holds")) > before
        for invariant in ("M1", "M4", "L2"):
            for verdict in ("violated", "suspect"):
                assert sample(url, CHECKS.format(invariant, verdict)) == 0, fetch(f"{url}/metrics")[
                    1
                ]
        assert fetch(f"{url}/-/healthy")[0] == 200
        process.terminate()
        assert process.wait(60) == 0
    assert held
    assert not still_loaded(held)


def test_a_link_that_is_closed_under_its_feet_costs_coverage() -> None:
    with Session(load(None, os.environ), running_kernel()) as session:
        session.step(0)
        before = session.coverage["M1"]
        assert before[0] is not Coverage.NONE
        hook = next(
            one for one in session.loaded.attachments() if one.hook == "remove_migration_pte"
        )
        spare = os.dup(
            hook.link.fd
        )  # else the kernel would detach at once, and another file could get its number
        os.close(hook.link.fd)
        session._next_tick_ns = 0
        session.step(0)
        state = next(one for one in session.loaded.hooks if one.hook.name == "remove_migration_pte")
        assert state.state is HookState.DETACHED
        level, reason = session.snapshot().coverage["M1"]
        assert level is Coverage.NONE
        assert "taken away: remove_migration_pte" in reason
        os.dup2(spare, hook.link.fd)
        os.close(spare)
        session._next_tick_ns = 0
        session.step(0)
        assert session.coverage["M1"] == before
        held = loaded_by("self")
    assert held
    assert not still_loaded(held)


def test_a_program_that_does_not_run_any_more_is_noticed() -> None:
    """No descriptor and no switch says so: only that our own VMA changes run nothing."""
    with Session(load(None, os.environ), running_kernel()) as session:
        seconds, attached = iter(range(0, 10**14, 10**9)), session.loaded.attachments()
        watch = LivenessCheck(
            lambda: attached, session._runs, attached_to=lambda _fd: (), clock=lambda: next(seconds)
        )
        assert not watch.check()
        session.loaded.detach()
        off = [watch.check() for _ in range(50)][-1]
        assert {"mmap_lock_acquire_returned", "mmap_lock_released"} <= set(off)


@pytest.mark.parametrize("statistics", [True, False])
def test_another_tool_that_switches_statistics_takes_nothing_from_us(statistics: bool) -> None:
    switch = Path("/proc/sys/kernel/bpf_stats_enabled")
    before = switch.read_text()
    try:
        with Session(Config(statistics=statistics), running_kernel()) as session:
            for value in ("1", "0"):
                switch.write_text(value)
                for _ in range(25):
                    assert not session.loaded.update_detached(session.watch.check())
            ran = session.snapshot().statistics["mmap_lock_released"]
            assert ran.runs or not statistics
    finally:
        switch.write_text(before)


def test_processes_that_exit_while_they_are_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RMAPD_SCAN_SECONDS", "0.5")
    done, found = run_exec(tmp_path, command=[*CROWD, "exit", "20"])
    assert done.returncode == 0, done.stderr
    assert not accused(found)
    said = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))
    assert said["processes"] > 50
    assert said["migrated"] > 1000
    assert found["oracle"]["sweeps"] >= 2
    assert found["migration"]["outstanding"] == 0


def test_ten_thousand_processes(tmp_path: Path) -> None:
    """M4 is about what stays, not about how fast a machine with so many is: a page that thousands map may take its ten seconds."""
    report, config = tmp_path / "report.json", tmp_path / "rmapd.toml"
    config.write_text("max_entry_age_seconds = 120.0\n")
    done = rmapd(
        "exec",
        "--config",
        str(config),
        "--report",
        str(report),
        "--",
        *CROWD,
        "live",
        "10000",
        timeout=1200,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(report.read_text())
    assert not accused(found)
    said = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))
    assert said["processes"] == 10000
    checks = found["invariants"]["M1"]["checks"]
    assert checks["holds"] + checks["unverifiable"] > 50000
