"""`rmapd run` as a service of systemd: readiness, watchdog, reload, stop.

The test takes systemd's end of the socket; the rest is real.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.live.conftest import ROOT, daemons_user
from tests.support.daemons import RMAPD, remaining
from tests.support.rehearsal import WindowRecorder, make
from tests.support.violations import VIOLATING, variant
from tracer.outputs.store import reader


class Manager:
    """The receiving end of systemd's notification socket."""

    def __init__(self, folder: Path) -> None:
        self.name = str(folder / "notify")
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(self.name)
        os.chmod(self.name, 0o777)  # as systemd's: the daemon is another user
        self.socket.settimeout(60)
        self.kept, self.removals = list[int](), 0

    def next(self) -> dict[str, str]:
        """Return the next message that is not about the descriptor store.

        Descriptors to keep are put into `kept`.
        """
        while True:
            raw, fds, _, _ = socket.recv_fds(self.socket, 4096, 253)
            fields = dict(line.split("=", 1) for line in raw.decode().splitlines())
            if "FDSTORE" in fields:
                self.kept += fds
            elif "FDSTOREREMOVE" in fields:
                self.removals += 1
                self.close_kept()
            else:
                return fields

    def close_kept(self) -> None:
        for fd in self.kept:
            os.close(fd)
        self.kept = []

    def drain(self) -> None:
        self.socket.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                self.socket.recv(4096)

    def until(self, key: str) -> dict[str, str]:
        while key not in (fields := self.next()):
            pass
        return fields


@pytest.fixture
def manager(reachable: Path) -> Iterator[Manager]:
    made = Manager(reachable)
    with made.socket:
        try:
            yield made
        finally:
            made.close_kept()


@contextlib.contextmanager
def start(manager: Manager, config: Path) -> Iterator[subprocess.Popen[str]]:
    environment = os.environ | {"NOTIFY_SOCKET": manager.name, "RMAPD_LISTEN": "127.0.0.1:0"}
    with subprocess.Popen(
        [RMAPD, "run", "--config", str(config)], stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def test_manager_is_notified_of_start_watchdog_reload_and_stop(
    manager: Manager, reachable: Path
) -> None:
    config = reachable / "rmapd.toml"
    config.write_text("scan_seconds = 60.0\n")
    with start(manager, config) as process:
        first = manager.next()
        assert first["READY"] == "1", "the first message is sent when the gate is open"
        assert "gate open on" in first["STATUS"]
        began = time.monotonic()
        for _ in range(3):
            assert manager.next()["WATCHDOG"] == "1"
        assert 1.5 < time.monotonic() - began < 6, "one message a second, from the checking loop"
        config.write_text("scan_seconds = 30.0\nfidelity = 'migration'\n")
        process.send_signal(signal.SIGHUP)
        assert int(manager.until("RELOADING")["MONOTONIC_USEC"]) <= time.monotonic_ns() // 1000
        manager.until("READY")
        config.write_text("scan_second = 1\n")
        process.send_signal(signal.SIGHUP)
        manager.until("RELOADING")
        manager.until("READY")
        manager.until("WATCHDOG")
        process.terminate()
        manager.until("STOPPING")
        assert process.wait(30) == 0
        assert process.stderr
        log = process.stderr.read()
    assert (
        "configuration read again: scan_seconds 60.0 -> 30.0; a restart is needed for fidelity"
        ' "auto" -> "migration"\n' in log
    )
    assert "the configuration stays as it was" in log
    assert "try: scan_seconds" in log


def test_reload_applies_the_level_of_the_log(manager: Manager, reachable: Path) -> None:
    config = reachable / "rmapd.toml"
    config.write_text("log_level = 'err'\n")
    with start(manager, config) as process:
        manager.until("READY")
        config.write_text("log_level = 'info'\nlog_format = 'json'\n")
        process.send_signal(signal.SIGHUP)
        manager.until("RELOADING")
        manager.until("READY")
        process.terminate()
        assert process.wait(30) == 0
        assert process.stderr
        lines = process.stderr.read().splitlines()
    assert [json.loads(line)["level"] for line in lines] == ["info"] * len(lines)
    assert json.loads(lines[0])["message"].startswith("configuration read again: ")
    assert json.loads(lines[-1])["message"].startswith("gate closed")


def test_stopped_daemon_sends_no_watchdog_message(manager: Manager, reachable: Path) -> None:
    """systemd's watchdog acts when no message arrives."""
    config = reachable / "rmapd.toml"
    config.write_text("")
    with start(manager, config) as process:
        manager.until("WATCHDOG")
        process.send_signal(signal.SIGSTOP)
        time.sleep(0.5)
        manager.drain()
        manager.socket.settimeout(3)
        with pytest.raises(TimeoutError):
            manager.next()
        process.send_signal(signal.SIGCONT)
        manager.socket.settimeout(30)
        manager.until("WATCHDOG")
        process.terminate()
        process.communicate(timeout=30)


def test_unit_file_is_valid_and_its_exposure_is_low(tmp_path: Path) -> None:
    unit = (ROOT / "systemd/rmapd.service").read_text()
    (tmp_path / "rmapd.service").write_text(unit.replace("/usr/local/bin/rmapd", RMAPD))
    command = ["systemd-analyze", "verify", "--man=no", str(tmp_path / "rmapd.service")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    # 0.5 of it is the kernel's log, which K1 reads: no PrivateDevices, no ProtectKernelLogs.
    rated = [
        "systemd-analyze",
        "security",
        "--offline=yes",
        "--no-pager",
        "--threshold=25",
        str(tmp_path / "rmapd.service"),
    ]
    done = subprocess.run(rated, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stderr}{done.stdout[-80:]}: an exposure of 2.5 at most"


SANDBOX = """
set -e
mount -t tmpfs none /home
mount -t tmpfs none /var/tmp
mkdir -p /usr/lib/modules && mount -t tmpfs none /usr/lib/modules
mount --bind /run /run
mkdir -p /run/rmapd && mount -t tmpfs -o mode=700,uid=$5,gid=$6 none /run/rmapd
mount --bind /dev/null /proc/kallsyms
read_only() { mount -o remount,bind,ro "$1"; }
for part in /sys /proc/sys; do mount --rbind $part $part; read_only $part; done
for part in /sys/kernel/tracing /sys/kernel/debug; do
  ! mountpoint -q $part || read_only $part
done
read_only /
! touch /etc/rmapd-was-here 2>/dev/null
! touch /run/rmapd-was-here 2>/dev/null
exec setpriv --reuid=$5 --regid=$6 --clear-groups --no-new-privs \\
  --inh-caps=-all,$1 --ambient-caps=-all,$1 --bounding-set=-all,$1 \\
  "$2" -c "$3" "$4" run --duration 2
"""
NO_WRITE_EXECUTE = (
    "import ctypes, os, sys; assert ctypes.CDLL(None).prctl(65, 1, 0, 0, 0) == 0;"
    " os.execv(sys.argv[1], sys.argv[1:])"
)
"""Set PR_SET_MDWE (Linux 6.3), as MemoryDenyWriteExecute does, and execute the arguments."""


def test_sandbox_of_the_unit_does_not_reduce_coverage() -> None:
    """Coverage is the same as without a sandbox.

    The test sets up the unit's user, capabilities, read-only file systems, hidden files and W^X.
    """
    settings = [
        line.partition("=") for line in (ROOT / "systemd/rmapd.service").read_text().splitlines()
    ]
    (bounding,) = (value for key, _, value in settings if key == "CapabilityBoundingSet")
    kept = ",".join(f"+{name.lower().removeprefix('cap_')}" for name in bounding.split())
    environment = os.environ | {"RMAPD_LISTEN": "127.0.0.1:0"}
    free = subprocess.run(
        [RMAPD, "run", "--duration", "0"],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    user = [str(daemons_user().pw_uid), str(daemons_user().pw_gid)]
    command = [
        "unshare",
        "-m",
        "bash",
        "-c",
        SANDBOX,
        "sandbox",
        kept,
        sys.executable,
        NO_WRITE_EXECUTE,
        RMAPD,
        *user,
    ]
    with open("/proc/kallsyms", "rb") as symbols:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env=environment, stdin=symbols
        )
    assert done.returncode == 0, done.stderr
    log = [line.partition(" INFO ")[2] for line in done.stderr.splitlines() if "coverage: " in line]
    assert log == [
        line.partition(" INFO ")[2] for line in free.stderr.splitlines() if "coverage: " in line
    ]
    assert len(log) == 1
    assert "not calibrated" not in done.stderr


PASS_DESCRIPTORS = """
import os, sys
first, count = int(sys.argv[1]), int(sys.argv[2])
names = ":".join(["rmapd"] * count)
os.environ |= {
    "LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(count), "LISTEN_FDNAMES": names
}
for number in range(count):
    os.dup2(first + number, 3 + number)
os.closerange(3 + count, 1024)
os.execv(sys.argv[3], sys.argv[3:])
"""


@contextlib.contextmanager
def passing(fds: list[int]) -> Iterator[list[str]]:
    """Yield a command that starts its arguments as systemd does, with these fds from 3 on."""
    high = [fcntl.fcntl(fd, fcntl.F_DUPFD, 500 + number) for number, fd in enumerate(fds)]
    for fd in high:
        os.set_inheritable(fd, True)
    yield [sys.executable, "-c", PASS_DESCRIPTORS, str(high[0]), str(len(high))]
    for fd in high:
        os.close(fd)


def test_results_of_a_killed_run_are_read_by_the_next_start(
    manager: Manager, reachable: Path
) -> None:
    """The test takes the part of systemd's descriptor store."""
    probes, store = make(reachable / "probes"), reachable / "rmapd.db"
    altered = [
        sys.executable,
        "-m",
        "tests.support.altered",
        str(probes),
        "{}",
        "run",
        "--store",
        str(store),
    ]
    environment = os.environ | {"NOTIFY_SOCKET": manager.name, "RMAPD_LISTEN": "127.0.0.1:0"}
    key = variant(VIOLATING["L3"], 0)
    with subprocess.Popen(altered, stderr=subprocess.PIPE, text=True, env=environment) as process:
        manager.until("WATCHDOG")
        with contextlib.closing(WindowRecorder.find()) as recorder:
            recorder.record(key)
            time.sleep(2.2)
            for _ in range(41):
                recorder.record(key)
        process.kill()
        process.communicate(timeout=30)
    kinds = Counter(os.readlink(f"/proc/self/fd/{fd}").split(":")[-1] for fd in manager.kept)
    assert set(kinds) <= {"bpf-map", "bpf-prog", "rmapd-checker (deleted)"}, (
        "no link: nothing stays attached"
    )
    assert kinds["bpf-map"] > 20
    with passing(manager.kept) as start_with:
        process = subprocess.Popen(
            [*start_with, *altered],
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            close_fds=False,
        )
    manager.close_kept()
    manager.drain()
    manager.socket.settimeout(60)
    removals = manager.removals
    with process:
        try:
            manager.until("READY")
            assert manager.removals == removals + 1, "it removes the descriptors that it received"
            manager.until("WATCHDOG")
            assert manager.kept, "it stores its own descriptors"
            process.terminate()
            _, log = process.communicate(timeout=60)
        finally:
            process.kill()
    with contextlib.suppress(TimeoutError):
        manager.socket.settimeout(1)
        while True:
            manager.next()
    assert process.returncode == 0, log
    assert not remaining()
    assert not manager.kept, "after a regular stop nothing is kept"
    assert "found after a crash: systemd kept it for this start: 42 violated, 0 suspect" in log
    found = reader.read(store)
    assert [(v["invariant"], v["count"]) for v in found.violations] == [("L3", 42)], (
        "nothing lost, nothing counted twice"
    )
    first, second = found.runs
    assert first["report"]["ended_early"]["reason"].startswith("found after a crash")
    assert first["ended"]
    assert "ended_early" not in second["report"]
