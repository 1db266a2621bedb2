"""`rmapd run` as systemd would have it: notified, watched, asked to reload. The socket is systemd's, the rest is real."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.live.conftest import RMAPD, ROOT, daemons_user


class Manager:
    """What systemd would hear."""

    def __init__(self, folder: Path) -> None:
        self.name = str(folder / "notify")
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(self.name)
        os.chmod(self.name, 0o777)  # as systemd's: whoever serves may tell it
        self.socket.settimeout(60)

    def next(self) -> dict[str, str]:
        return dict(line.split("=", 1) for line in self.socket.recv(4096).decode().splitlines())

    def drain(self) -> None:
        self.socket.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                self.socket.recv(4096)

    def until(self, key: str) -> dict[str, str]:
        while key not in (heard := self.next()):
            pass
        return heard


@pytest.fixture
def manager(reachable: Path) -> Iterator[Manager]:
    made = Manager(reachable)
    with made.socket:
        yield made


@contextlib.contextmanager
def start(manager: Manager, config: Path) -> Iterator[subprocess.Popen[str]]:
    environment = os.environ | {"NOTIFY_SOCKET": manager.name, "RMAPD_LISTEN": "127.0.0.1:0"}
    with subprocess.Popen([RMAPD, "run", "--config", str(config)], stderr=subprocess.PIPE, text=True, env=environment) as process:
        try:
            yield process
        finally:
            process.kill()


def test_ready_watched_reloaded_stopped(manager: Manager, reachable: Path) -> None:
    config = reachable / "rmapd.toml"
    config.write_text("patrol_seconds = 60.0\n")
    with start(manager, config) as process:
        first = manager.next()
        assert first["READY"] == "1", "the first word is that the gate is open"
        assert "gate open on" in first["STATUS"]
        began = time.monotonic()
        for _ in range(3):
            assert manager.next()["WATCHDOG"] == "1"
        assert 1.5 < time.monotonic() - began < 6, "one ping a second, from the judging loop"
        config.write_text("patrol_seconds = 30.0\nfidelity = 'migration'\n")
        process.send_signal(signal.SIGHUP)
        assert int(manager.until("RELOADING")["MONOTONIC_USEC"]) <= time.monotonic_ns() // 1000
        manager.until("READY")
        config.write_text("patrol_second = 1\n")
        process.send_signal(signal.SIGHUP)
        manager.until("RELOADING")
        manager.until("READY")
        manager.until("WATCHDOG")
        process.terminate()
        manager.until("STOPPING")
        assert process.wait(30) == 0
        assert process.stderr
        said = process.stderr.read()
    assert (
        "configuration read again: welcome_seconds 10, settle_seconds 5, patrol_seconds 30, budget 0.01, sampled_windows 1000; "
        "a restart is needed for fidelity" in said
    )
    assert "the configuration stays as it was" in said
    assert "  try: patrol_seconds" in said


def test_a_daemon_that_does_not_judge_is_not_alive(manager: Manager, reachable: Path) -> None:
    """Stopped in its tracks it sends nothing, which is what the watchdog waits for."""
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


def test_the_unit_file_is_one(tmp_path: Path) -> None:
    unit = (ROOT / "systemd/rmapd.service").read_text()
    (tmp_path / "rmapd.service").write_text(unit.replace("/usr/local/bin/rmapd", RMAPD))
    command = ["systemd-analyze", "verify", "--man=no", str(tmp_path / "rmapd.service")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    rated = ["systemd-analyze", "security", "--offline=yes", "--no-pager", "--threshold=20", str(tmp_path / "rmapd.service")]
    done = subprocess.run(rated, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stderr}{done.stdout[-80:]}: an exposure of 2.0 at most"


SANDBOX = """
set -e
mount -t tmpfs none /home
mount -t tmpfs none /var/tmp
mkdir -p /usr/lib/modules && mount -t tmpfs none /usr/lib/modules
mount --bind /run /run
mkdir -p /run/rmapd && mount -t tmpfs -o mode=700,uid=$5,gid=$6 none /run/rmapd
mount --bind /dev/null /proc/kallsyms
for part in /sys /proc/sys; do mount --rbind $part $part; mount -o remount,bind,ro $part; done
for part in /sys/kernel/tracing /sys/kernel/debug; do ! mountpoint -q $part || mount -o remount,bind,ro $part; done
mount -o remount,bind,ro /
! touch /etc/rmapd-was-here 2>/dev/null
! touch /run/rmapd-was-here 2>/dev/null
exec setpriv --reuid=$5 --regid=$6 --clear-groups --no-new-privs --inh-caps=-all,$1 --ambient-caps=-all,$1 --bounding-set=-all,$1 \\
  "$2" -c "$3" "$4" run --duration 2
"""
NO_WRITE_EXECUTE = "import ctypes, os, sys; assert ctypes.CDLL(None).prctl(65, 1, 0, 0, 0) == 0; os.execv(sys.argv[1], sys.argv[1:])"
"""PR_SET_MDWE (Linux 6.3), which is MemoryDenyWriteExecute."""


def test_what_the_unit_leaves_is_enough() -> None:
    """The unit's user, capabilities, read-only file systems, hidden files and W^X, made by hand: nothing is covered less."""
    settings = [line.partition("=") for line in (ROOT / "systemd/rmapd.service").read_text().splitlines()]
    (bounding,) = (value for key, _, value in settings if key == "CapabilityBoundingSet")
    kept = ",".join(f"+{name.lower().removeprefix('cap_')}" for name in bounding.split())
    environment = os.environ | {"RMAPD_LISTEN": "127.0.0.1:0"}
    free = subprocess.run([RMAPD, "run", "--duration", "0"], capture_output=True, text=True, check=True, env=environment)
    user = [str(daemons_user().pw_uid), str(daemons_user().pw_gid)]
    command = ["unshare", "-m", "bash", "-c", SANDBOX, "sandbox", kept, sys.executable, NO_WRITE_EXECUTE, RMAPD, *user]
    with open("/proc/kallsyms", "rb") as symbols:
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, stdin=symbols)
    assert done.returncode == 0, done.stderr
    said = [line.partition(" INFO ")[2] for line in done.stderr.splitlines() if "coverage: " in line]
    assert said == [line.partition(" INFO ")[2] for line in free.stderr.splitlines() if "coverage: " in line]
    assert len(said) == 1
    assert "not calibrated" not in done.stderr
