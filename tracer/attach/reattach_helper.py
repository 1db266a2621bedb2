"""The process that attaches paused hooks again, for a daemon that gave up the privilege to do so.

At its start it is given loaded programs and their targets. All that it does from then on is to
attach one of them to its target, by number, or to switch the kernel's run statistics on, and to
send the file descriptor back. It is started before the daemon drops its privileges, becomes the
daemon's user, keeps the capabilities that this takes, and ends when the daemon does.

Through the socket: eight bytes of length and JSON (the user's name, uid and gid, or null; [how,
symbol] by number; whether statistics will be asked for), then the programs. The helper answers with
four bytes once it has dropped what it does not need. Each request is a number (four bytes), of a
program or _STATISTICS; each answer an errno (four bytes), with the descriptor if it is 0.
"""

from __future__ import annotations

import errno
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
from typing import NamedTuple

from pyprctl import Cap

from tracer.bpf.links import Link, link_of
from tracer.bpf.programs import Program, enable_statistics
from tracer.process import privileges
from tracer.process.fd_passing import receive_descriptors, receive_exactly, send_descriptors
from tracer.process.users import User

_STATISTICS = 2**32 - 1
"""The request for run statistics."""
_START_SECONDS = 120.0  # of a Python where CPUs are emulated
_ANSWER_SECONDS = 10.0
_PERF_EVENT_PARANOID = Path("/proc/sys/kernel/perf_event_paranoid")


class ProgramTarget(NamedTuple):
    """A loaded program, how it attaches (tracer.bpf.programs.KINDS), and to which symbol."""

    program: Program
    how: str
    symbol: str


def needed_capabilities(
    methods: Collection[str], *, statistics: bool, paranoid: Path = _PERF_EVENT_PARANOID
) -> frozenset[Cap]:
    """Return the capabilities that attaching by these methods takes, and switching statistics on.

    kernel/bpf/syscall.c, bpf_link_create(): CAP_BPF, CAP_PERFMON; bpf_enable_stats():
    CAP_SYS_ADMIN. kernel/events/core.c,
    perf_kprobe_event_init(): CAP_PERFMON. Debian's kernels know a perf_event_paranoid of 3, at
    which perf_event_open() takes CAP_SYS_ADMIN.
    """
    capabilities = {Cap.BPF, Cap.PERFMON}
    by_kprobe = not {"kprobe", "kretprobe"}.isdisjoint(methods)
    if statistics or (by_kprobe and int(paranoid.read_text(encoding="utf-8")) > 2):
        capabilities.add(Cap.SYS_ADMIN)
    return frozenset(capabilities)


class ReattachHelper:
    """The daemon's side: the running process, and the socket to it."""

    def __init__(
        self,
        targets: Sequence[ProgramTarget],
        user: User | None = None,
        *,
        statistics: bool = False,
    ) -> None:
        """Start the process and wait until it has dropped its privileges.

        user: that it becomes. statistics: enable_statistics() will be called, which takes more of
        them.
        """
        self._numbers = {target.program.fd: number for number, target in enumerate(targets)}
        self._hows = [target.how for target in targets]
        self._socket, theirs = socket.socketpair()
        module = "tracer.attach.reattach_helper"
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", module, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
        self._socket.settimeout(_START_SECONDS)
        symbols = [[target.how, target.symbol] for target in targets]
        text = json.dumps([user and astuple(user), symbols, statistics]).encode()
        try:
            self._socket.sendall(struct.pack("<Q", len(text)) + text)
            send_descriptors(self._socket, [target.program.fd for target in targets])
            receive_exactly(self._socket, 4)  # fewer bytes where it has ended: attach() finds out
        except OSError:
            self._process.kill()
        self._socket.settimeout(_ANSWER_SECONDS)
        self._unanswered = 0

    def attach(self, program: Program) -> Link:
        """Have a program attached to its target.

        Raises OSError where the kernel refuses, or where the helper has ended or does not answer.
        """
        number = self._numbers[program.fd]
        return link_of(self._hows[number], self._ask(number))

    def enable_statistics(self) -> int:
        """Return a descriptor: while it is open, the kernel counts runs and run times of programs.

        Raises OSError as attach() does.
        """
        return self._ask(_STATISTICS)

    def _ask(self, number: int) -> int:
        try:
            self._socket.sendall(struct.pack("<I", number))
            self._unanswered += 1
            answer, fds, _, _ = socket.recv_fds(self._socket, 4, 1)
            while answer and self._unanswered > 1:  # late, to an earlier request: detach it
                self._unanswered -= 1
                for fd in fds:
                    os.close(fd)
                answer, fds, _, _ = socket.recv_fds(self._socket, 4, 1)
        except TimeoutError as error:
            why = f"the process that attaches does not answer within {_ANSWER_SECONDS:g} s"
            raise OSError(errno.ETIMEDOUT, why) from error
        except OSError as error:
            raise OSError(error.errno, "the process that attaches has ended") from error
        self._unanswered -= 1
        if len(answer) < 4:
            raise OSError(errno.EPIPE, "the process that attaches has ended")
        (error_number,) = struct.unpack("<i", answer)
        if error_number:
            raise OSError(error_number, os.strerror(error_number))
        if not fds:
            raise OSError(errno.EMFILE, "no descriptor is free for a link")
        return fds[0]

    def close(self) -> None:
        """Close the socket, which ends the helper, and wait for it; kill it if it goes on."""
        self._socket.close()
        try:
            self._process.wait(_ANSWER_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()


def main(descriptor: int) -> None:
    """Run the helper. descriptor: of its socket."""
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # systemd sends SIGTERM to all: the daemon ends it
    daemon = socket.socket(fileno=descriptor)
    user, symbols, statistics = json.loads(
        receive_exactly(daemon, struct.unpack("<Q", receive_exactly(daemon, 8))[0])
    )
    kept = needed_capabilities({how for how, _ in symbols}, statistics=statistics)
    privileges.become(user and User(*user), kept)
    programs = [Program(fd) for fd in receive_descriptors(daemon, len(symbols))]
    daemon.sendall(bytes(4))
    while len(request := receive_exactly(daemon, 4)) == 4:
        (number,) = struct.unpack("<I", request)
        try:
            fd = _answer(number, programs, symbols)
        except OSError as error:
            daemon.sendall(struct.pack("<i", error.errno or 1))
            continue
        socket.send_fds(daemon, [bytes(4)], [fd])
        os.close(fd)


def _answer(number: int, programs: Sequence[Program], symbols: Sequence[Sequence[str]]) -> int:
    """Do what a request asks for, and return the descriptor. Raises OSError."""
    if number == _STATISTICS:
        return enable_statistics()
    link = programs[number].attach(*symbols[number])
    if link is None:
        raise OSError(errno.EINVAL, "a program that runs on demand is not attached")
    return link.fd


if __name__ == "__main__":
    main(int(sys.argv[1]))
