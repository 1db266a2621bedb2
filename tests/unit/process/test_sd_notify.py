"""Messages to systemd on a real socket, and the descriptors that systemd keeps."""

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
def notify_socket(tmp_path: Path) -> Iterator[tuple[str, socket.socket]]:
    name = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(name)
        listening.settimeout(5)
        yield name, listening


def test_each_notification_is_one_datagram_with_its_fields(
    notify_socket: tuple[str, socket.socket],
) -> None:
    name, listening = notify_socket
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


def test_abstract_socket_is_notified() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind("")  # the kernel picks an abstract name
        listening.settimeout(5)
        name = listening.getsockname().decode().replace("\0", "@", 1)
        SystemdNotifier({"NOTIFY_SOCKET": name}).ready("x")
        assert listening.recv(4096).startswith(b"READY=1")


def test_missing_socket_is_reported_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    SystemdNotifier({}).ready("x")
    assert not caplog.messages
    missing = SystemdNotifier({"NOTIFY_SOCKET": str(tmp_path / "gone")})
    missing.alive("x")
    missing.alive("x")
    (message,) = caplog.messages
    assert message.startswith("cannot notify systemd: ")


def test_descriptors_are_sent_to_systemd_and_removed(tmp_path: Path) -> None:
    name = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        heard.bind(name)
        systemd = SystemdNotifier({"NOTIFY_SOCKET": name})

        given = [os.memfd_create(f"kept-{number}") for number in range(3)]
        systemd.store_descriptors(given)
        message, came, _, _ = socket.recv_fds(heard, 4096, 10)
        assert message == b"FDSTORE=1\nFDNAME=rmapd\nFDPOLL=0"
        assert [os.fstat(fd).st_ino for fd in came] == [os.fstat(fd).st_ino for fd in given]
        systemd.remove_stored_descriptors()
        assert heard.recv(4096) == b"FDSTOREREMOVE=1\nFDNAME=rmapd"
        for fd in [*given, *came]:
            os.close(fd)


TAKING = """
import os
from tracer.process.sd_notify import take_stored_descriptors
names = "rmapd:other:rmapd"
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "3", "LISTEN_FDNAMES": names}
for number in range(3):
    os.dup2(os.memfd_create(str(number)), 20 + number)
for number in range(3):
    os.dup2(20 + number, 3 + number)
taken = take_stored_descriptors()
left = [fd for fd in (3, 4, 5) if os.path.exists(f"/proc/self/fd/{fd}")]
print(taken, "LISTEN_FDS" in os.environ, left, os.get_inheritable(3))
other = {"LISTEN_PID": "1", "LISTEN_FDS": "1", "LISTEN_FDNAMES": "rmapd"}
print(take_stored_descriptors(), take_stored_descriptors(other))
"""


def test_stored_descriptors_are_taken_once_by_their_name() -> None:
    done = subprocess.run(
        [sys.executable, "-c", TAKING], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == ["[3, 5] False [3, 5] False", "[] []"]
