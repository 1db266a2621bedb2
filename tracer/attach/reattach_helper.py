"""A process that keeps what the daemon gives up once it has attached: the privilege to attach again what the governor has taken off.

It is given the loaded programs and their places at the start. All that can be asked of it afterwards is to attach one of them at its
place, by number; the link's file descriptor comes back. It ends when the daemon does. It is started before privileges are dropped,
becomes the daemon's user, and keeps the capabilities which that attaching needs, once it knows its programs.

Through the socket: eight bytes of length and JSON (the user: name, uid and gid, or null; [how, symbol] by number), then the programs. Four
bytes come back once it has nothing left that it does not need. Then for each request a number (four bytes) and for each answer an errno
(four bytes), with the descriptor where it is 0.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Collection, Sequence
from dataclasses import astuple
from pathlib import Path

from pyprctl import Cap

from tracer.bpf.programs import Link, Program
from tracer.process import privileges
from tracer.process.fd_passing import exactly, receive_descriptors, send_descriptors
from tracer.process.privileges import User

_START_SECONDS = 120.0  # of a Python where CPUs are emulated
_PATIENCE_SECONDS = 10.0
Place = tuple[Program, str, str]
"""A program, and how and where it attaches."""


def needed(
    ways: Collection[str], paranoid: Path = Path("/proc/sys/kernel/perf_event_paranoid")
) -> frozenset[Cap]:
    """To attach by these: kernel/bpf/syscall.c, bpf_link_create(); kernel/events/core.c, perf_kprobe_event_init(). Debian adds a level 3 of
    perf_event_paranoid, above which perf_event_open() is for CAP_SYS_ADMIN."""
    admin = (
        bool({"kprobe", "kretprobe"} & set(ways)) and int(paranoid.read_text(encoding="utf-8")) > 2
    )
    return frozenset({Cap.BPF, Cap.PERFMON} | ({Cap.SYS_ADMIN} if admin else set()))


class ReattachHelper:
    """The daemon's side."""

    def __init__(self, places: Sequence[Place], who: User | None = None) -> None:
        self._numbers = {place[0].fd: number for number, place in enumerate(places)}
        self._socket, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tracer.attach.reattach_helper", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
        self._socket.settimeout(_START_SECONDS)
        text = json.dumps(
            [who and astuple(who), [[how, symbol] for _, how, symbol in places]]
        ).encode()
        self._socket.sendall(struct.pack("<Q", len(text)) + text)
        send_descriptors(self._socket, [program.fd for program, _, _ in places])
        try:
            exactly(self._socket, 4)  # fewer where it has ended: attach() finds out
        except OSError:
            self._process.kill()
        self._socket.settimeout(_PATIENCE_SECONDS)

    def attach(self, program: Program) -> Link:
        """Raises OSError where the kernel refuses, or the keeper does not answer."""
        self._socket.sendall(struct.pack("<I", self._numbers[program.fd]))
        answer, fds, _, _ = socket.recv_fds(self._socket, 4, 1)
        if len(answer) < 4:
            raise OSError(0, "the process that attaches has ended")
        (error,) = struct.unpack("<i", answer)
        if error:
            raise OSError(error, os.strerror(error))
        return Link(fds[0])

    def close(self) -> None:
        self._socket.close()
        self._process.wait(_PATIENCE_SECONDS)


def main(descriptor: int) -> None:
    """The keeper's side."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    theirs = socket.socket(fileno=descriptor)
    who, places = json.loads(exactly(theirs, struct.unpack("<Q", exactly(theirs, 8))[0]))
    privileges.become(who and User(*who), needed({how for how, _ in places}))
    programs = [Program(fd) for fd in receive_descriptors(theirs, len(places))]
    theirs.sendall(bytes(4))
    while len(asked := exactly(theirs, 4)) == 4:
        (number,) = struct.unpack("<I", asked)
        try:
            link = programs[number].attach(*places[number])
        except OSError as error:
            theirs.sendall(struct.pack("<i", error.errno or 1))
            continue
        if link:  # what is run on demand has none, and does not rest
            socket.send_fds(theirs, [bytes(4)], [link.fd])
            link.close()


if __name__ == "__main__":
    main(int(sys.argv[1]))
