"""The smallest set that is enough is kept; every thread starts without; what attaching alone needs is refused."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
import threading

import pytest
from pyprctl import Cap

from tracer.bpf.syscall import Command
from tracer.errors import RmapdError
from tracer.process import privileges, seccomp


class State:
    """Capabilities of a thread that is not ours."""

    current: State

    def __init__(self, effective: set[Cap], permitted: set[Cap], inheritable: set[Cap]) -> None:
        self.effective, self.permitted, self.inheritable = effective, permitted, inheritable

    @classmethod
    def get_current(cls) -> State:
        return cls.current.copy()

    def copy(self) -> State:
        return State(set(self.effective), set(self.permitted), set(self.inheritable))

    def set_current(self) -> None:
        assert self.effective <= self.permitted
        State.current = self.copy()


@pytest.fixture
def root(monkeypatch: pytest.MonkeyPatch) -> set[Cap]:
    everything = {Cap.BPF, Cap.PERFMON, Cap.SYSLOG, Cap.SYS_ADMIN, Cap.SETPCAP}
    State.current = State(set(everything), set(everything), set())
    monkeypatch.setattr(privileges, "CapState", State)
    return everything


@pytest.mark.parametrize("needs", [set(), {Cap.BPF}, {Cap.BPF, Cap.PERFMON}, {Cap.SYS_ADMIN}])
def test_the_first_step_that_is_enough(root: set[Cap], needs: set[Cap]) -> None:
    def rehearse() -> str:
        if not needs <= State.current.effective:
            raise PermissionError("no")
        return "as ever"

    kept = privileges._needed(rehearse)
    assert needs <= kept
    assert kept in privileges._LADDER
    assert not any(needs <= step for step in privileges._LADDER[: privileges._LADDER.index(kept)])
    assert State.current.effective == root, "what was tried is undone"


def test_less_to_see_is_a_refusal_too(root: set[Cap]) -> None:
    """As /proc/kallsyms does: it opens and shows zeros."""
    assert privileges._needed(lambda: Cap.SYSLOG in State.current.effective) == {
        Cap.BPF,
        Cap.PERFMON,
        Cap.SYSLOG,
    }


def test_what_nobody_foresaw_keeps_all(root: set[Cap]) -> None:
    assert privileges._needed(lambda: len(State.current.effective)) == root


def test_threads_start_without(monkeypatch: pytest.MonkeyPatch) -> None:
    given_up: list[str] = []
    monkeypatch.setattr(
        privileges,
        "keep",
        lambda kept: given_up.append(f"{threading.current_thread().name} {len(kept)}"),
    )
    with privileges.threads_without():
        inside = threading.Thread(target=lambda: threading.Event().wait(0), name="inside")
        inside.start()
        inside.join()
    outside = threading.Thread(target=int, name="outside")
    outside.start()
    outside.join()
    assert given_up == ["inside 0"]


def test_all_that_judging_calls_is_allowed_and_no_more() -> None:
    used = {
        Command.MAP_LOOKUP_ELEM,
        Command.MAP_UPDATE_ELEM,
        Command.MAP_DELETE_ELEM,
        Command.MAP_LOOKUP_BATCH,
        Command.MAP_UPDATE_BATCH,
        Command.PROG_TEST_RUN,
        Command.OBJ_GET_INFO_BY_FD,
        Command.ITER_CREATE,
    }
    assert used <= seccomp._BPF_ALLOWED
    assert not seccomp._BPF_ALLOWED & {
        Command.PROG_LOAD,
        Command.RAW_TRACEPOINT_OPEN,
        Command.LINK_CREATE,
        Command.ENABLE_STATS,
    }


def passwd(monkeypatch: pytest.MonkeyPatch, **known: int) -> None:
    def getpwnam(name: str) -> pwd.struct_passwd:
        return pwd.struct_passwd((name, "x", known[name], known[name], "", "/", "/bin/false"))

    monkeypatch.setattr(pwd, "getpwnam", getpwnam)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    State.current.permitted |= {Cap.SETUID, Cap.SETGID}


def test_root_becomes_the_user_or_nobody(
    root: set[Cap], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    passwd(monkeypatch, rmapd=990, nobody=65534)
    assert privileges.user("rmapd") == privileges.User("rmapd", 990, 990)
    assert not caplog.records
    passwd(monkeypatch, nobody=65534)
    assert privileges.user("rmapd") == privileges.User("nobody", 65534, 65534)
    assert "there is no user rmapd: rmapd becomes nobody" in caplog.text


@pytest.mark.parametrize(
    ("name", "why"), [("watcher", "there is no such user"), ("root", "it is root")]
)
def test_a_user_that_was_asked_for_must_be_one(
    root: set[Cap], monkeypatch: pytest.MonkeyPatch, name: str, why: str
) -> None:
    passwd(monkeypatch, root=0, nobody=65534)
    with pytest.raises(RmapdError, match=f"rmapd cannot become {name}: {why}"):
        privileges.user(name)


def test_who_is_not_root_or_cannot_change_stays(
    root: set[Cap], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    passwd(monkeypatch, rmapd=990)
    State.current.permitted -= {Cap.SETUID}
    assert privileges.user("rmapd") is None
    assert "stays uid 0, which owns root's files: CAP_SETUID missing" in caplog.text
    monkeypatch.setattr(os, "geteuid", lambda: 990)
    assert privileges.user("rmapd") is None


def test_what_nobody_foresaw_keeps_no_capability_over_files(root: set[Cap]) -> None:
    more = {Cap.DAC_OVERRIDE, Cap.CHOWN, Cap.SETUID, Cap.KILL}
    State.current = State(root | more, root | more, set())
    assert privileges._needed(lambda: len(State.current.effective)) == root


SEALED = """
import errno, os, threading
from tracer.bpf.syscall import Command, call
from tracer.process import seccomp
waiting, checked = threading.Event(), threading.Event()
def refused(action):
    try:
        action()
    except OSError as error:
        return errno.errorcode[error.errno]
    return "done"
results = []
def other():
    waiting.wait()
    results.append(refused(lambda: os.execv("/bin/true", ["true"])))
thread = threading.Thread(target=other)
thread.start()
print("forbid", repr(seccomp.forbid()))
waiting.set()
thread.join()
load = lambda: call(Command.PROG_LOAD, bytes(128))
info = lambda: call(Command.OBJ_GET_INFO_BY_FD, b"\\xff\\xff\\xff\\xff")
print(*results, refused(lambda: os.execv("/bin/true", ["true"])), refused(load), refused(info))
"""


def test_the_filter_refuses_in_every_thread() -> None:
    """A new program, a new process image: EPERM. What judging asks goes through to the kernel (EBADFD for no descriptor)."""
    pytest.importorskip("seccomp", reason="python3-seccomp is not installed")
    done = subprocess.run(
        [sys.executable, "-c", SEALED], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == ["forbid ''", "EPERM EPERM EPERM EBADFD"]


def test_without_libseccomp_there_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "seccomp", None)
    assert seccomp.forbid() == "no seccomp filter (python3-seccomp is not installed)"
