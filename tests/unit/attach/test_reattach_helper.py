"""The capabilities that the reattach helper keeps, and its daemon where it does not answer."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pyprctl import Cap

from tracer.attach import reattach_helper
from tracer.attach.reattach_helper import ProgramTarget, ReattachHelper, needed_capabilities
from tracer.bpf.programs import Program

LATE = """
import os, socket, struct, sys, time
daemon = socket.socket(fileno=int(sys.argv[-1]))
(size,) = struct.unpack("<Q", daemon.recv(8))
daemon.recv(size)
socket.recv_fds(daemon, 1, 9)
daemon.sendall(bytes(4))
for seconds, name in ((0.6, "null"), (0, "zero")):
    daemon.recv(4)
    time.sleep(seconds)
    socket.send_fds(daemon, [bytes(4)], [os.open(f"/dev/{name}", os.O_RDONLY)])
"""


def test_late_answer_of_the_helper_is_not_taken_for_the_next_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    popen = subprocess.Popen
    monkeypatch.setattr(reattach_helper, "_ANSWER_SECONDS", 0.2)
    monkeypatch.setattr(
        subprocess,
        "Popen",
        lambda words, **options: popen([sys.executable, "-c", LATE, words[-1]], **options),
    )
    programs = [Program(os.open(os.devnull, os.O_RDONLY)) for _ in range(2)]
    helper = ReattachHelper([ProgramTarget(one, "raw_tp", "x") for one in programs])
    with pytest.raises(OSError, match=r"does not answer within 0\.2 s"):
        helper.attach(programs[0])
    time.sleep(1)
    assert os.readlink(f"/proc/self/fd/{helper.attach(programs[1]).fd}") == "/dev/zero"
    with pytest.raises(OSError, match="the process that attaches has ended"):
        helper.attach(programs[0])
    helper.close()
    for program in programs:
        os.close(program.fd)


@pytest.mark.parametrize(
    ("paranoid", "methods", "statistics", "more"),
    [
        ("2", {"fentry", "kprobe"}, False, set()),
        ("3", {"fentry", "raw_tp", "kprobe.multi"}, False, set()),
        ("3", {"kretprobe", "kprobe"}, False, {Cap.SYS_ADMIN}),
        ("2", {"raw_tp"}, True, {Cap.SYS_ADMIN}),
    ],
)
def test_sys_admin_is_needed_only_for_statistics_and_kprobes_on_a_paranoid_kernel(
    tmp_path: Path, paranoid: str, methods: set[str], statistics: bool, more: set[Cap]
) -> None:
    (tmp_path / "perf_event_paranoid").write_text(f"{paranoid}\n")
    assert (
        needed_capabilities(
            methods, statistics=statistics, paranoid=tmp_path / "perf_event_paranoid"
        )
        == {Cap.BPF, Cap.PERFMON} | more
    )
