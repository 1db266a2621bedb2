"""The governor on this kernel: a slow program is detached until the load has gone.

A test makes the program slow. mmap_lock is hooked at fidelity `full` alone. Without hooks on
functions `migration` would detach nothing more, so `owner` is the lowest level here.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pyprctl import Cap

from tests.live.conftest import daemon
from tests.support.daemons import checker_of, fetch, loaded_by, sample, still_loaded, until
from tracer.daemon.probes import probes_folder
from tracer.process.capabilities import permitted_by_thread

PACE = {"look": 0.5, "over": 2, "under": 2, "rest": 4}
SLOW = """
  char comm[16] = {};
  bpf_get_current_comm(&comm, sizeof(comm));
  if (*(u64 *)comm == 0x776f6c732d73692dULL) {
#pragma nounroll
    for (u32 i = 0; i < 2000; i++) bpf_ktime_get_ns();
  }
"""
COMM = (0x776F6C732D73692D).to_bytes(8, "little")
LOAD = (
    f"import ctypes, mmap\nctypes.CDLL(None).prctl(15, {COMM!r}, 0, 0, 0)\n"
    "while True: mmap.mmap(-1, 4096).close()"
)
L2, ATTACHED = (
    'rmapd_invariant_coverage{invariant="L2"}',
    'rmapd_probe_attached{hook="mmap_lock_released"}',
)
RUNS = 'rmapd_probe_runs_total{hook="mmap_lock_released"}'
HELD = 'rmapd_lock_hold_seconds_count{class="mmap_lock",mode="write"}'


@pytest.fixture
def slow_probes(tmp_path: Path) -> Path:
    """Copy the probes, with a slow program on the release of mmap_lock.

    It takes some fifty microseconds in tasks named COMM.
    """
    copy = tmp_path / "probes"
    shutil.copytree(probes_folder(), copy)
    source = copy / "mmap_lock.bpf.c"
    head = "HOOK(mmap_lock_released)\n{\n"
    text = source.read_text()
    assert head in text
    source.write_text(text.replace(head, head + SLOW))
    return copy


@pytest.fixture
def load() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", LOAD]) as process:
        process.send_signal(signal.SIGSTOP)
        try:
            yield process
        finally:
            process.kill()


def wait_for_value(url: str, line: str, value: float, seconds: float = 60) -> None:
    for _ in range(int(seconds / 0.25)):
        if sample(url, line) == value:
            return
        time.sleep(0.25)
    pytest.fail(f"{line} is not {value}:\n{fetch(f'{url}/metrics')[1]}")


def test_slow_hook_is_detached_and_reattached_after_the_load(
    slow_probes: Path, load: subprocess.Popen[bytes]
) -> None:
    altered = [sys.executable, "-m", "tests.support.altered", str(slow_probes), json.dumps(PACE)]
    with daemon(command=altered, env={"RMAPD_BUDGET": "0.05"}) as (process, url):
        wait_for_value(url, 'rmapd_fidelity{level="full"}', 1)
        assert (sample(url, L2), sample(url, ATTACHED)) == (0.5, 1)
        load.send_signal(signal.SIGCONT)
        wait_for_value(url, 'rmapd_fidelity{level="owner"}', 1)
        assert (sample(url, L2), sample(url, ATTACHED)) == (0, 0)
        assert (
            sample(url, 'rmapd_fidelity{level="full"}'),
            sample(url, 'rmapd_fidelity_changes_total{direction="lower"}'),
        ) == (0, 1)
        assert sample(url, 'rmapd_invariant_coverage{invariant="M4"}') == 0.5, (
            "forks are not seen at this level"
        )
        held, runs = sample(url, HELD), sample(url, RUNS)
        time.sleep(2)
        assert (sample(url, HELD), sample(url, RUNS)) == (held, runs), "detached"
        load.send_signal(signal.SIGSTOP)
        wait_for_value(url, 'rmapd_fidelity{level="full"}', 1)
        assert (sample(url, L2), sample(url, ATTACHED)) == (0.5, 1)
        assert sample(url, 'rmapd_fidelity_changes_total{direction="raise"}') >= 1
        subprocess.run(
            [
                sys.executable,
                "-c",
                "import os\nfor _ in range(50):\n"
                " p = os.fork()\n p or os._exit(0)\n os.waitpid(p, 0)",
            ],
            check=True,
        )
        until(lambda: sample(url, HELD) > held, 20, "the hook counts again")
        for invariant in ("M1", "L2"):
            for verdict in ("violated", "suspect"):
                assert (
                    sample(
                        url, f'rmapd_checks_total{{invariant="{invariant}",verdict="{verdict}"}}'
                    )
                    == 0
                )
        programs = loaded_by(process.pid)
        assert len(programs) > 10
        assert set(
            permitted_by_thread(Path(f"/proc/{reattach_helper_of(process.pid)}")).values()
        ) == {1 << Cap.BPF.value | 1 << Cap.PERFMON.value | 1 << Cap.SYS_ADMIN.value}
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert process.stderr
        log = process.stderr.read()
        assert "privileges dropped; kept: no capability" in log
        assert (
            "governor: programs may take 5 % of the machine's CPU time; levels full, owner" in log
        )
        assert "fidelity owner instead of full: programs take" in log
        assert "fidelity full instead of owner: programs would take" in log
    assert not still_loaded(programs), "the reattach helper has released them, too"


def test_required_hook_stays_attached_over_budget(
    slow_probes: Path, load: subprocess.Popen[bytes]
) -> None:
    altered = [sys.executable, "-m", "tests.support.altered", str(slow_probes), json.dumps(PACE)]
    with daemon("--require", "L2", command=altered, env={"RMAPD_BUDGET": "0.05"}) as (_, url):
        wait_for_value(url, 'rmapd_fidelity{level="full"}', 1)
        load.send_signal(signal.SIGCONT)
        time.sleep(8)
        assert sample(
            url, 'rmapd_probe_run_seconds_total{hook="mmap_lock_released"}'
        ) > 0.05 * 4 * (os.cpu_count() or 1), "the programs take more than the budget"
        assert (sample(url, 'rmapd_fidelity{level="full"}'), sample(url, L2)) == (1, 0.5)


def test_level_stays_low_without_the_reattach_helper(
    slow_probes: Path, load: subprocess.Popen[bytes]
) -> None:
    altered = [sys.executable, "-m", "tests.support.altered", str(slow_probes), json.dumps(PACE)]
    with daemon(command=altered, env={"RMAPD_BUDGET": "0.05"}) as (process, url):
        load.send_signal(signal.SIGCONT)
        wait_for_value(url, 'rmapd_fidelity{level="owner"}', 1)
        load.send_signal(signal.SIGSTOP)
        os.kill(reattach_helper_of(process.pid), signal.SIGKILL)
        time.sleep(12)
        assert (
            sample(url, 'rmapd_fidelity{level="owner"}'),
            sample(url, L2),
            sample(url, ATTACHED),
        ) == (1, 0, 0)
        assert sample(url, 'rmapd_fidelity_changes_total{direction="raise"}') == 0
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert process.stderr
        log = process.stderr.read()
        assert "the fidelity stays as it is" in log or log.count("fidelity stays owner: ") == 1


def reattach_helper_of(pid: int) -> int:
    """Return the pid of the checker's only child."""
    checker = checker_of(pid)
    (child,) = Path(f"/proc/{checker}/task/{checker}/children").read_text().split()
    assert b"tracer.attach.reattach_helper" in Path(f"/proc/{child}/cmdline").read_bytes()
    return int(child)
