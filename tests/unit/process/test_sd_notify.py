"""What systemd would hear, on a real socket; and what a running daemon takes over."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tracer.process.sd_notify import SystemdNotifier


@pytest.fixture
def ears(tmp_path: Path) -> Iterator[tuple[str, socket.socket]]:
    name = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(name)
        listening.settimeout(5)
        yield name, listening


def test_what_is_said(ears: tuple[str, socket.socket]) -> None:
    name, listening = ears
    supervisor = SystemdNotifier({"NOTIFY_SOCKET": name})
    supervisor.ready("gate open")
    supervisor.alive("0 violated")
    supervisor.reloading()
    supervisor.stopping()
    heard = [listening.recv(4096).decode().splitlines() for _ in range(4)]
    assert heard[0] == ["READY=1", "STATUS=gate open"]
    assert heard[1] == ["WATCHDOG=1", "STATUS=0 violated"]
    assert heard[2][0] == "RELOADING=1"
    assert heard[2][1].removeprefix("MONOTONIC_USEC=").isdigit()
    assert heard[3][0] == "STOPPING=1"


def test_an_abstract_socket() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind("")  # the kernel picks an abstract name
        listening.settimeout(5)
        name = listening.getsockname().decode().replace("\0", "@", 1)
        SystemdNotifier({"NOTIFY_SOCKET": name}).ready("x")
        assert listening.recv(4096).startswith(b"READY=1")


def test_nobody_listens(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    SystemdNotifier({}).ready("x")
    assert not caplog.messages
    gone = SystemdNotifier({"NOTIFY_SOCKET": str(tmp_path / "gone")})
    gone.alive("x")
    gone.alive("x")
    (message,) = caplog.messages
    assert message.startswith("systemd does not hear us")


def test_descriptors_are_kept_and_let_go(tmp_path: Path) -> None:
    name = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        heard.bind(name)
        systemd = SystemdNotifier({"NOTIFY_SOCKET": name})

        given = [os.memfd_create(f"kept-{number}") for number in range(3)]
        systemd.keep(given)
        message, came, _, _ = socket.recv_fds(heard, 4096, 10)
        assert message == b"FDSTORE=1\nFDNAME=rmapd\nFDPOLL=0"
        assert [os.fstat(fd).st_ino for fd in came] == [os.fstat(fd).st_ino for fd in given]
        systemd.forget()
        assert heard.recv(4096) == b"FDSTOREREMOVE=1\nFDNAME=rmapd"
        for fd in [*given, *came]:
            os.close(fd)


TAKING = """
import os
from tracer.process.sd_notify import taken_back
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "3", "LISTEN_FDNAMES": "rmapd:other:rmapd"}
for number in range(3):
    os.dup2(os.memfd_create(str(number)), 20 + number)
for number in range(3):
    os.dup2(20 + number, 3 + number)
print(taken_back(), "LISTEN_FDS" in os.environ, [fd for fd in (3, 4, 5) if os.path.exists(f"/proc/self/fd/{fd}")], os.get_inheritable(3))
print(taken_back(), taken_back({"LISTEN_PID": "1", "LISTEN_FDS": "1", "LISTEN_FDNAMES": "rmapd"}))
"""


def test_what_systemd_kept_is_taken_back_once() -> None:
    done = subprocess.run(
        [sys.executable, "-c", TAKING], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == ["[3, 5] False [3, 5] False", "[] []"]
