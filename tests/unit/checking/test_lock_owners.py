"""Locks that the audit finds owned for write, until they are decided."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from tracer.checking.lock_owners import (
    MOST_HOLDS,
    WATCH_NS,
    WATCH_SHARE,
    LockOwners,
)
from tracer.checking.lock_proofs import HUNG_LIMIT_NS, LOOK_GAP_NS, LOOKS, SLEEP_LIMIT_NS
from tracer.checking.verdicts import Verdicts
from tracer.invariants.verdict import Finding, Tally
from tracer.memory.lock_owners import Entered, OwnerLook, Watched
from tracer.memory.vma_trees import OwnedLock

ANON, MMAP = "AUDIT_ANON_VMA_RWSEM", "AUDIT_MMAP_LOCK"
LOCK, TASK, OTHER = 0xFFFF888000100010, 0xFFFF888000200000, 0xFFFF888000300000
SLEEPS, KILLABLE, STOPPED = 1, 0x102, 4
KTHREAD = 0x200000
HELD = OwnerLook(
    owned=True,
    identity=77,
    seq=None,
    start_ns=1,
    alive=True,
    user_ns=500,
    system_ns=0,
    switches=3,
    call=9,
    state=0,
    flags=0,
    on_cpu=True,
    cpu=1,
    tid=42,
    tgid=41,
    comm="owner",
)
FREE = replace(HELD, owned=False)


def owned_lock(lock: int = LOCK, owner: int = TASK, kind: str = ANON, vma: int = 0) -> OwnedLock:
    return OwnedLock(lock, owner, kind, 0x1000, vma)


class Kernel:
    """What the reader sees, by (lock, task), and what watched tasks do. The clock is the test's."""

    def __init__(self) -> None:
        self.now = 10**9
        self.state: dict[tuple[int, int], OwnerLook | None] = {(LOCK, TASK): HELD}
        self.did: dict[tuple[int, int], Entered] = {}
        self.rows: list[Watched] = []
        self.attached, self.refusal = False, ""
        self.attached_ns = 0
        self.looks: list[int] = []
        self.tally = Tally()
        self.owners = LockOwners(
            self, self.hook, Verdicts(self.tally, lambda: 0.0), self.describe, lambda: self.now
        )

    def look(self, lock: int, _kind: str, task: int) -> OwnerLook | None:
        self.looks.append(self.now)
        return self.state[lock, task]

    def watch(self, locks: Iterable[Watched]) -> list[Watched]:
        self.rows = list(locks)
        return self.rows

    def entered(self) -> dict[tuple[int, int], Entered]:
        watched = {(one.lock, one.task) for one in self.rows}
        return {key: self.did.get(key, Entered(0, 0, 0)) for key in watched}

    def forget(self) -> None:
        self.rows = []

    def hook(self, on: bool) -> str:
        if on and self.refusal:
            return self.refusal
        assert self.attached is not on
        self.attached = on
        return ""

    def describe(self, vma: int, _mm: int) -> dict[str, Any]:
        return {"vma": hex(vma)}

    def found(self, *rows: OwnedLock) -> None:
        self.owners.note(rows or (owned_lock(),))

    def becomes(self, look: OwnerLook | None) -> None:
        self.state[LOCK, TASK] = look

    def run(self, ns: int) -> None:
        """Work whenever it is due, for this time."""
        end = self.now + ns
        while (due := self.owners.due_ns()) is not None and due <= end:
            before, self.now = self.now, max(self.now, due)
            self.attached_ns += (self.now - before) * self.attached
            self.owners.work()
        self.attached_ns += (end - self.now) * self.attached
        self.now = end

    @property
    def verdicts(self) -> dict[str, int]:
        return {str(verdict): count for (_, verdict), count in self.tally.checks.items() if count}

    @property
    def finding(self) -> Finding:
        (violation,) = self.tally.violations.values()
        return violation.first


@pytest.fixture
def kernel() -> Kernel:
    return Kernel()


def test_lock_that_is_given_back_is_one_check_that_holds(kernel: Kernel) -> None:
    kernel.found()
    kernel.found()
    kernel.run(LOOK_GAP_NS // 2)
    kernel.becomes(FREE)
    kernel.run(LOOK_GAP_NS)
    assert (kernel.verdicts, kernel.owners.due_ns()) == ({"holds": 1}, None)
    assert not kernel.attached
    assert kernel.owners.counts["watches"] == 0


def test_lock_that_was_given_back_before_the_first_look_holds(kernel: Kernel) -> None:
    kernel.becomes(FREE)
    kernel.found()
    kernel.run(0)
    assert kernel.verdicts == {"holds": 1}


def test_lock_that_is_handed_on_was_given_back_by_its_first_owner(kernel: Kernel) -> None:
    kernel.state[LOCK, OTHER] = HELD
    kernel.found()
    kernel.run(LOOK_GAP_NS)
    kernel.becomes(FREE)  # the owner field names another task
    kernel.found(owned_lock(owner=OTHER))
    kernel.run(5 * LOOK_GAP_NS)
    assert kernel.verdicts == {"holds": 1}
    assert kernel.owners.due_ns() is not None, "the other is followed for itself"
    assert kernel.rows[0].task == OTHER


@pytest.mark.parametrize("gone", [None, replace(FREE, identity=0), replace(HELD, identity=78)])
def test_lock_that_is_freed_or_unreadable_is_no_check(
    kernel: Kernel, gone: OwnerLook | None
) -> None:
    kernel.found()
    kernel.run(LOOK_GAP_NS // 2)
    kernel.becomes(gone)
    kernel.run(LOOK_GAP_NS)
    assert (kernel.verdicts, kernel.owners.due_ns()) == ({}, None)


def test_candidate_is_watched_only_after_three_looks_20_ms_apart(kernel: Kernel) -> None:
    kernel.found()
    kernel.run(2 * LOOK_GAP_NS - 1)
    assert (len(kernel.looks), kernel.attached) == (LOOKS - 1, False)
    kernel.run(1)
    assert kernel.attached
    assert all(after - before >= LOOK_GAP_NS for before, after in pairwise(kernel.looks))
    assert kernel.rows == [Watched(LOCK, ANON, TASK, HELD.identity, HELD.start_ns)]


def test_owner_that_enters_a_system_call_is_a_violation_with_its_evidence(kernel: Kernel) -> None:
    kernel.found(owned_lock(vma=0x55))
    kernel.run(2 * LOOK_GAP_NS)
    kernel.did[LOCK, TASK] = Entered(2, 0, 231)
    kernel.run(100_000_000)
    assert (kernel.verdicts, kernel.attached) == ({"violated": 1}, False)
    found = kernel.finding
    still = "still owns the anon_vma rwsem for write"
    assert found.summary == f"owner[42] enters a system call and {still}"
    assert found.signature == "L3 violated anon_vma_rwsem enters a system call"
    assert found.task == {"pid": 42, "tgid": 41, "comm": "owner"}
    age = found.evidence.pop("age_seconds")
    assert 0.04 <= age < 0.2
    assert found.evidence == {
        "lock": f"anon_vma rwsem at {LOCK:#x}",
        "owner": "owner[42], running on CPU 1",
        "mm": "0x1000",
        "vma": {"vma": "0x55"},
        "system_call": 231,
    }
    assert kernel.owners.due_ns() is None


def test_violation_at_a_system_call_counts_though_the_lock_is_given_back_since(
    kernel: Kernel,
) -> None:
    kernel.found()
    kernel.run(2 * LOOK_GAP_NS)
    kernel.did[LOCK, TASK] = Entered(1, 1, 12)
    kernel.becomes(FREE)
    kernel.run(LOOK_GAP_NS)
    assert kernel.verdicts == {"violated": 1}


def test_owner_that_enters_a_system_call_without_the_lock_gave_it_back(kernel: Kernel) -> None:
    kernel.found()
    kernel.run(2 * LOOK_GAP_NS)
    kernel.did[LOCK, TASK] = Entered(0, 4, 0)
    kernel.run(100_000_000)
    assert (kernel.verdicts, kernel.attached) == ({"holds": 1}, False)


def test_long_call_that_works_is_nothing_until_the_kernel_would_call_it_hung(
    kernel: Kernel,
) -> None:
    """A fork of a terabyte: system time grows, and no call is entered."""
    kernel.found()
    kernel.run(HUNG_LIMIT_NS - LOOK_GAP_NS)
    assert kernel.verdicts == {}
    kernel.run(2 * 10**9)
    assert kernel.verdicts == {"suspect": 1}
    assert kernel.finding.shape == "owned for long"
    kernel.becomes(FREE)
    kernel.run(2 * 10**9)
    assert kernel.verdicts == {"suspect": 1}, "its check has ended already"


def test_owner_blocked_for_a_filesystem_is_no_suspect_after_ten_seconds(kernel: Kernel) -> None:
    kernel.becomes(replace(HELD, state=KILLABLE, on_cpu=False))
    kernel.found()
    kernel.run(60 * 10**9)
    assert kernel.verdicts == {}


def test_owner_that_sleeps_interruptibly_is_a_suspect_after_ten_seconds_and_a_watch(
    kernel: Kernel,
) -> None:
    kernel.becomes(replace(HELD, state=SLEEPS, on_cpu=False, call=0))
    kernel.found()
    kernel.run(SLEEP_LIMIT_NS - LOOK_GAP_NS)
    assert kernel.verdicts == {}
    kernel.run(2 * 10**9)
    assert kernel.verdicts == {"suspect": 1}
    words = r"owner\[42\] has owned the anon_vma rwsem for write for 1\d s, sleeping interruptibly"
    assert re.fullmatch(words, kernel.finding.summary)
    assert kernel.finding.evidence["system_call"] == 0
    kernel.run(60 * 10**9)
    assert kernel.verdicts == {"suspect": 1}, "once"
    kernel.did[LOCK, TASK] = Entered(1, 0, 3)
    kernel.run(30 * 10**9)
    assert kernel.verdicts == {"suspect": 1, "violated": 1}, "it woke up and kept it"


def test_kernel_thread_is_not_watched_at_system_calls(kernel: Kernel) -> None:
    kernel.becomes(replace(HELD, flags=KTHREAD))
    kernel.found()
    kernel.run(HUNG_LIMIT_NS + 10**9)
    assert kernel.owners.counts["watches"] == 0
    assert kernel.verdicts == {"suspect": 1}


def test_dead_owner_is_a_violation_after_three_looks(kernel: Kernel) -> None:
    kernel.found()
    kernel.run(LOOK_GAP_NS // 2)
    kernel.becomes(replace(HELD, alive=False))
    kernel.run(2 * LOOK_GAP_NS)
    assert kernel.verdicts == {}
    kernel.run(LOOK_GAP_NS)
    assert kernel.verdicts == {"violated": 1}
    assert kernel.finding.summary == "owner[42] is dead and still owns the anon_vma rwsem for write"
    assert kernel.finding.evidence["system_call"] is None


def test_new_task_in_the_memory_of_the_owner_means_that_the_owner_is_dead(kernel: Kernel) -> None:
    kernel.found()
    kernel.run(LOOK_GAP_NS // 2)
    kernel.becomes(replace(HELD, start_ns=999, comm="other"))
    kernel.run(3 * LOOK_GAP_NS)
    assert (kernel.verdicts, kernel.finding.shape) == ({"violated": 1}, "owner is dead")


def test_owner_that_looks_dead_once_is_not_accused(kernel: Kernel) -> None:
    """de_thread() (fs/exec.c) exchanges the struct pids of two tasks, one link after the other."""
    kernel.found()
    kernel.becomes(replace(HELD, alive=False))
    kernel.run(LOOK_GAP_NS + 1)
    kernel.becomes(HELD)
    kernel.run(LOOK_GAP_NS)
    kernel.becomes(replace(HELD, alive=False))
    kernel.run(LOOK_GAP_NS)
    assert kernel.verdicts == {}


def test_stopped_owner_is_a_violation(kernel: Kernel) -> None:
    kernel.becomes(replace(HELD, state=STOPPED, on_cpu=False))
    kernel.found()
    kernel.run(LOOKS * LOOK_GAP_NS)
    assert (kernel.verdicts, kernel.finding.shape) == ({"violated": 1}, "owner is stopped")


def test_user_time_under_one_hold_of_the_mmap_lock_is_a_violation(kernel: Kernel) -> None:
    kernel.becomes(replace(HELD, seq=8))
    kernel.found(owned_lock(kind=MMAP))
    kernel.run(LOOK_GAP_NS // 2)
    kernel.becomes(replace(HELD, seq=8, user_ns=4_000_500))
    kernel.run(LOOKS * LOOK_GAP_NS)
    assert (kernel.verdicts, kernel.finding.shape) == ({"violated": 1}, "owner is in user mode")


def test_user_time_between_two_holds_is_nothing(kernel: Kernel) -> None:
    """A task in a loop of mmap() has the lock at most looks. mm_lock_seq tells the holds apart."""
    kernel.found(owned_lock(kind=MMAP))
    for n in range(50):
        kernel.becomes(replace(HELD, seq=2 * n, user_ns=n * 10**6))
        kernel.run(LOOK_GAP_NS)
    assert set(kernel.verdicts) == {"holds"}
    assert kernel.verdicts["holds"] >= 40
    assert kernel.owners.counts["watches"] == 0, "no hold is three looks old"


def test_user_time_proves_nothing_where_holds_cannot_be_told_apart(kernel: Kernel) -> None:
    kernel.found()
    for n in range(50):
        kernel.becomes(replace(HELD, user_ns=n * 10**6))
        kernel.run(LOOK_GAP_NS)
    assert kernel.verdicts == {}


def test_system_calls_are_hooked_for_a_bounded_share_of_time(kernel: Kernel) -> None:
    kernel.found()
    kernel.run(100 * 10**9)
    assert kernel.owners.counts["watches"] >= 9
    assert kernel.attached_ns <= 1.1 * (WATCH_SHARE * 100 * 10**9 + WATCH_NS)


def test_candidates_that_come_and_go_cost_no_more_than_the_share(kernel: Kernel) -> None:
    """Each is decided at the first system call, and the next one is there at once."""
    for n in range(400):
        row = owned_lock(lock=LOCK + 0x100 * n)
        kernel.state[row.lock, TASK] = HELD
        kernel.did[row.lock, TASK] = Entered(0, 1, 0)
        kernel.found(row)
        kernel.run(4 * LOOK_GAP_NS)
        kernel.state[row.lock, TASK] = FREE
        kernel.run(LOOK_GAP_NS)
    kernel.run(30 * 10**9)
    assert kernel.verdicts == {"holds": 400}
    assert 0 < kernel.attached_ns <= 1.1 * WATCH_SHARE * kernel.now


def test_refused_hook_leaves_what_is_seen_by_value(kernel: Kernel) -> None:
    kernel.refusal = "Operation not permitted"
    kernel.becomes(replace(HELD, state=SLEEPS, on_cpu=False))
    kernel.found()
    kernel.run(SLEEP_LIMIT_NS + 2 * 10**9)
    assert (kernel.verdicts, kernel.owners.refused) == ({"suspect": 1}, "Operation not permitted")
    kernel.refusal = ""
    kernel.run(20 * 10**9)
    assert (kernel.owners.refused, kernel.owners.counts["watches"] > 0) == ("", True)


def test_number_of_locks_that_are_followed_is_bounded(kernel: Kernel) -> None:
    rows = [owned_lock(lock=LOCK + 0x100 * n) for n in range(MOST_HOLDS + 5)]
    kernel.state |= {(row.lock, TASK): FREE for row in rows}
    kernel.found(*rows)
    assert kernel.owners.counts["not followed"] == 5
    kernel.run(LOOK_GAP_NS)
    assert kernel.verdicts == {"holds": MOST_HOLDS}


def test_settling_decides_all_that_can_be_decided_within_its_time(kernel: Kernel) -> None:
    def sleep(seconds: float) -> None:
        kernel.now += int(seconds * 1e9)

    stopped = replace(HELD, state=STOPPED, on_cpu=False)
    working = owned_lock(lock=LOCK + 0x100)
    kernel.state = {(LOCK, TASK): stopped, (working.lock, TASK): HELD}
    kernel.found(owned_lock(), working)
    began = kernel.now
    kernel.owners.settle(sleep)
    assert kernel.verdicts == {"violated": 1}
    assert kernel.owners.followed == {(working.lock, TASK)}
    assert 10**9 <= kernel.now - began < 2 * 10**9


def test_end_of_a_run_detaches_and_decides_what_can_be_decided(kernel: Kernel) -> None:
    given = owned_lock(lock=LOCK + 0x100)
    kernel.state[given.lock, TASK] = HELD
    kernel.found(owned_lock(), given)
    kernel.run(3 * LOOK_GAP_NS)
    assert kernel.attached
    kernel.state[given.lock, TASK] = FREE
    kernel.owners.close()
    assert (kernel.verdicts, kernel.attached, kernel.owners.due_ns()) == ({"holds": 1}, False, None)


def test_end_of_a_run_makes_no_look_that_would_complete_a_proof_too_early(kernel: Kernel) -> None:
    kernel.becomes(replace(HELD, alive=False))
    kernel.found()
    kernel.run(LOOK_GAP_NS)
    kernel.owners.close()
    assert kernel.verdicts == {}


def test_end_of_a_run_still_reads_what_a_watched_task_did(kernel: Kernel) -> None:
    kernel.found()
    kernel.run(2 * LOOK_GAP_NS)
    kernel.did[LOCK, TASK] = Entered(1, 0, 60)
    kernel.becomes(FREE)
    kernel.owners.close()
    assert (kernel.verdicts, kernel.attached) == ({"violated": 1}, False)
