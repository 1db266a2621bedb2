"""L3 by audit on this kernel: a lock of our own that a task keeps or gives back, and healthy load.

The lock is a rwsem in a map of ours (tests/fixtures/owned). No lock of the kernel is touched.
"""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import time
from collections.abc import Iterator

import pytest

from tests.live.conftest import ROOT
from tracer.attach.plan import HookState
from tracer.config import Config
from tracer.daemon.probes import probes_folder, running_kernel
from tracer.daemon.session import Session, open_session
from tracer.invariants.base import Coverage
from tracer.invariants.verdict import Verdict, Violation
from tracer.memory.vma_trees import OwnedLock

ANON = "AUDIT_ANON_VMA_RWSEM"
WRITER, READER_OWNED = 1, 1
STRESS_SECONDS = int(os.environ.get("RMAPD_OWNERS_SECONDS", "30"))
STRESSORS = "fork 2 mmap 1 munmap 1 mremap 1 brk 1".split()


class Model:
    """The lock of our own."""

    def __init__(self, session: Session) -> None:
        self.session = session
        (self._own,) = session.probes.loaded.programs["own_model"]
        self._lock = session.probes.loaded.maps["model_lock"]

    def own(self, count: int = WRITER, bits: int = 0) -> OwnedLock:
        """Make this task the lock's owner, as rwsem.count and bits of rwsem.owner say."""
        self._own.run(count, bits)
        return self.owned()

    def owned(self) -> OwnedLock:
        """Return the lock with the task that owned it last."""
        lock, owner = struct.unpack("<QQ", self._lock.lookup(bytes(4)) or b"")
        return OwnedLock(lock, owner, ANON, 0, 0)

    def follow(self, row: OwnedLock, seconds: float) -> list[Violation]:
        """Let the session follow it; return the violations of L3."""
        assert self.session.owners
        tally = self.session.checker.tally
        tally.violations.clear()
        tally.checks.clear()
        self.session.owners.note([row])
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.session.owners.due_ns() is not None:
            self.session.step(0.01)
        return [one for one in tally.violations.values() if one.first.invariant == "L3"]

    def holds(self) -> int:
        return self.session.checker.tally.checks["L3", Verdict.HOLDS]


@pytest.fixture(scope="module")
def session() -> Iterator[Session]:
    folders = [probes_folder(), ROOT / "tests/fixtures/owned"]
    with open_session(Config(audit_budget=0.01), running_kernel(), folders) as opened:
        yield opened


@pytest.fixture
def model(session: Session) -> Model:
    return Model(session)


def hook_state(session: Session) -> HookState:
    (hook,) = [h for h in session.probes.loaded.hooks if h.hook.name == "owner_enters"]
    return hook.state


def test_locks_are_covered_without_hooks_on_functions(session: Session) -> None:
    level, reason = session.coverage["L3"]
    assert level is not Coverage.NONE, reason
    assert hook_state(session) is HookState.PAUSED
    if level is Coverage.PARTIAL:
        print(reason)


def test_task_that_enters_a_system_call_with_a_lock_has_kept_it(model: Model) -> None:
    (found,) = model.follow(model.own(), 5)
    assert found.first.verdict is Verdict.VIOLATED
    assert found.first.shape == "enters a system call"
    assert found.first.task["pid"] == os.getpid()
    assert isinstance(found.first.evidence["system_call"], int)
    assert hook_state(model.session) is HookState.PAUSED, "detached again"
    print(found.first.summary, found.first.evidence)


def test_lock_that_is_given_back_or_handed_to_readers_holds(model: Model) -> None:
    for count, bits in ((0, 0), (1 << 8, READER_OWNED), (WRITER, READER_OWNED)):
        row = model.own()
        assert model.session.owners
        model.session.owners.note([row])
        model.session.owners.work()
        before = model.holds()
        model.own(count, bits)
        time.sleep(0.03)
        model.session.owners.work()
        assert model.holds() == before + 1
        assert (row.lock, row.owner) not in model.session.owners.followed


@pytest.mark.parametrize(
    ("ending", "shape"),
    [(signal.SIGKILL, "owner is dead"), (signal.SIGSTOP, "owner is stopped")],
)
def test_owner_that_died_or_stopped_has_kept_its_lock(
    model: Model, ending: signal.Signals, shape: str
) -> None:
    child = os.fork()
    if child == 0:
        model.own()
        os.kill(os.getpid(), ending)
        os._exit(0)
    os.waitpid(child, os.WUNTRACED)  # a dead one is released, and its task_struct is free
    found = model.follow(model.owned(), 5)
    if ending is signal.SIGSTOP:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert [(one.first.verdict, one.first.shape) for one in found] == [(Verdict.VIOLATED, shape)]
    assert found[0].first.task["pid"] == child
    model.own(0)


def test_healthy_load_has_no_lock_that_is_kept(session: Session) -> None:
    """Locks of all mms under stress: each that the audit finds owned is given back."""
    assert session.owners
    assert session.audit
    tally, owners = session.checker.tally, session.owners
    tally.violations.clear()
    tally.checks.clear()
    owners.counts.clear()
    session.audit.budget = 0.25  # more than a user would give it: more locks are found
    stress = [f"--{text}" if n % 2 == 0 else text for n, text in enumerate(STRESSORS)]
    command = ["stress-ng", "--quiet", "--timeout", f"{STRESS_SECONDS}s", *stress]
    with subprocess.Popen(command) as load:
        began = time.monotonic()
        while load.poll() is None:
            session.step(0.01)
        seconds = time.monotonic() - began
    owners.close()
    counts = dict(owners.counts)
    share = counts.get("watched ns", 0) / 1e9 / seconds
    print(
        f"{seconds:.0f} s: {counts}; "
        f"{counts['followed'] / seconds:.1f} locks/s followed, system calls hooked {share:.2%} of"
        f" the time; {session.audit.progress().counted}"
    )
    checks = {str(verdict): n for (name, verdict), n in tally.checks.items() if name == "L3"}
    assert checks.get("violated", 0) + checks.get("suspect", 0) == 0, [
        one.first.summary for one in tally.violations.values()
    ]
    assert checks["holds"] > 0
    assert share <= 0.06
