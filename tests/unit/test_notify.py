"""What systemd would hear, on a real socket; and what a running daemon takes over."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tracer.notify import Supervisor


@pytest.fixture
def ears(tmp_path: Path) -> Iterator[tuple[str, socket.socket]]:
    name = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(name)
        listening.settimeout(5)
        yield name, listening


def test_what_is_said(ears: tuple[str, socket.socket]) -> None:
    name, listening = ears
    supervisor = Supervisor({"NOTIFY_SOCKET": name})
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
        Supervisor({"NOTIFY_SOCKET": name}).ready("x")
        assert listening.recv(4096).startswith(b"READY=1")


def test_nobody_listens(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Supervisor({}).ready("x")
    assert not caplog.messages
    gone = Supervisor({"NOTIFY_SOCKET": str(tmp_path / "gone")})
    gone.alive("x")
    gone.alive("x")
    (message,) = caplog.messages
    assert message.startswith("systemd does not hear us")
