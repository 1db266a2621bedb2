"""The smallest sufficient capabilities are kept, threads start without any, the filter refuses."""

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
from tracer.process import capabilities, privileges, seccomp, users


class State:
    """Capabilities of a simulated thread."""

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
    monkeypatch.setattr(capabilities, "CapState", State)
    monkeypatch.setattr(users, "CapState", State)
    return everything


@pytest.mark.parametrize("needs", [set(), {Cap.BPF}, {Cap.BPF, Cap.PERFMON}, {Cap.SYS_ADMIN}])
def test_first_sufficient_candidate_is_kept(root: set[Cap], needs: set[Cap]) -> None:
    def rehearse() -> str:
        if not needs <= State.current.effective:
            raise PermissionError("no")
        return "unchanged"

    kept = capabilities.smallest_sufficient(rehearse)
    assert needs <= kept
    assert kept in capabilities.CANDIDATES
    assert not any(
        needs <= candidate
        for candidate in capabilities.CANDIDATES[: capabilities.CANDIDATES.index(kept)]
    )
    assert State.current.effective == root, "the trial is undone"


def test_rehearsal_with_another_result_rejects_the_candidate(root: set[Cap]) -> None:
    """/proc/kallsyms opens without CAP_SYSLOG, but its addresses are zero."""
    assert capabilities.smallest_sufficient(lambda: Cap.SYSLOG in State.current.effective) == {
        Cap.BPF,
        Cap.PERFMON,
        Cap.SYSLOG,
    }


def test_no_sufficient_candidate_keeps_all_of_the_fallback(root: set[Cap]) -> None:
    assert capabilities.smallest_sufficient(lambda: len(State.current.effective)) == root


def test_threads_started_inside_drop_capabilities(monkeypatch: pytest.MonkeyPatch) -> None:
    given_up: list[str] = []
    monkeypatch.setattr(
        capabilities,
        "limit_to",
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


def test_filter_allows_the_bpf_commands_of_checking_and_no_others() -> None:
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
    assert used <= seccomp.BPF_ALLOWED
    assert not seccomp.BPF_ALLOWED & {
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


def test_root_becomes_rmapd_or_nobody(
    root: set[Cap], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    passwd(monkeypatch, rmapd=990, nobody=65534)
    assert users.resolve("rmapd") == users.User("rmapd", 990, 990)
    assert not caplog.records
    passwd(monkeypatch, nobody=65534)
    assert users.resolve("rmapd") == users.User("nobody", 65534, 65534)
    assert "there is no user rmapd: rmapd becomes nobody" in caplog.text


@pytest.mark.parametrize(
    ("name", "why"), [("watcher", "there is no such user"), ("root", "it is root")]
)
def test_configured_user_that_is_missing_or_root_is_an_error(
    root: set[Cap], monkeypatch: pytest.MonkeyPatch, name: str, why: str
) -> None:
    passwd(monkeypatch, root=0, nobody=65534)
    with pytest.raises(RmapdError, match=f"rmapd cannot become {name}: {why}"):
        users.resolve(name)


def test_process_that_cannot_change_user_keeps_it(
    root: set[Cap], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    passwd(monkeypatch, rmapd=990)
    State.current.permitted -= {Cap.SETUID}
    assert users.resolve("rmapd") is None
    assert "stays uid 0, which owns root's files: CAP_SETUID missing" in caplog.text
    monkeypatch.setattr(os, "geteuid", lambda: 990)
    assert users.resolve("rmapd") is None


def test_fallback_has_no_capability_over_files(root: set[Cap]) -> None:
    more = {Cap.DAC_OVERRIDE, Cap.CHOWN, Cap.SETUID, Cap.KILL}
    State.current = State(root | more, root | more, set())
    assert capabilities.smallest_sufficient(lambda: len(State.current.effective)) == root


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
print("forbid", repr(seccomp.install_filter()))
waiting.set()
thread.join()
load = lambda: call(Command.PROG_LOAD, bytes(128))
info = lambda: call(Command.OBJ_GET_INFO_BY_FD, b"\\xff\\xff\\xff\\xff")
print(*results, refused(lambda: os.execv("/bin/true", ["true"])), refused(load), refused(info))
"""


def test_filter_refuses_in_threads_started_before_it() -> None:
    """execve() and BPF_PROG_LOAD: EPERM. What checking needs reaches the kernel, hence EBADFD."""
    pytest.importorskip("seccomp", reason="python3-seccomp is not installed")
    done = subprocess.run(
        [sys.executable, "-c", SEALED], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == ["forbid ''", "EPERM EPERM EPERM EBADFD"]


def test_missing_libseccomp_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "seccomp", None)
    assert seccomp.install_filter() == "no seccomp filter (python3-seccomp is not installed)"
