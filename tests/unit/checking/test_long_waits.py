"""L7: tasks that wait for themselves, in a ring, or for too long; and what is none of these."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from tracer.checking.long_waits import LongWaits, caller, function_of
from tracer.checking.stalls import Stalls
from tracer.checking.trail import Trail
from tracer.checking.verdicts import Verdicts
from tracer.invariants.verdict import Finding, Tally
from tracer.memory.sleepers import LockWait, Sleeper
from tracer.tables.events import Event

LIMIT_NS = 30 * 10**9
CLASSES = ("other", "mmap", "mmap2", "i_mmap", "i_mmap2", "anon")
NAMES = {
    1: "rwsem_down_write_slowpath+0x1", 2: "down_write+0x5", 3: "vma_modify+0x7", 4: "ksys+0x1",
    5: "io_schedule+0x2", 6: "folio_wait_bit+0x3", 7: "filemap_fault+0x4",
    8: "userfaultfd_event_wait_completion+0x9",
}  # fmt: skip
WAITING, IN_WINDOW, IN_IO = (1, 2, 4), (1, 2, 3, 4), (5, 6, 7, 4)
A, B, C = 0xA000, 0xB000, 0xC000
LOCK_A, LOCK_B, MM = 0x1A, 0x1B, 0xEE00


def sleeper(task: int, wait: LockWait | None = None, **more: Any) -> Sleeper:
    made = Sleeper(task, 1, 5, MM, task >> 12, task >> 12, "task", wait, {}, WAITING)
    return replace(made, **more)


def wants(lock: int, writer: int = 0, kind: str = "anon", **more: Any) -> LockWait:
    return replace(LockWait(lock, 10**9, kind, 0x77, "write", True, writer, 0), **more)


class Trails:
    def of_task(self, mms: Any, tids: Any, now_ns: int) -> Trail:
        return Trail((), f"{sorted(mms)} {sorted(tids)}")


class Rig:
    """LongWaits over sleepers and a clock of the test."""

    def __init__(self, iterator: bool = True) -> None:
        self.now, self.sleepers, self.tally = 10**9, list[Sleeper](), Tally()
        self.looks, self.stalls, self.missed = 0, Stalls(10**9), False
        self.read: Callable[[], Sequence[Sleeper]] = lambda: self.sleepers
        self.waits = LongWaits(
            self._look if iterator else None,
            Verdicts(self.tally, lambda: 0.0),
            self.names,
            lambda _event: self.names(IN_WINDOW),
            Trails(),  # type: ignore[arg-type]
            CLASSES,
            ("read", "write"),
            ("vma_modify",),
            LIMIT_NS,
            self.stalls,
            lambda: self.missed,
            lambda: self.now,
        )

    def _look(self) -> Sequence[Sleeper]:
        return self.read()

    @staticmethod
    def names(frames: Sequence[int]) -> tuple[str, ...]:
        return tuple(NAMES[frame] for frame in frames)

    def run(self, seconds: float) -> None:
        """Let this time pass; work when it is due."""
        end = self.now + int(seconds * 1e9)
        while (due := self.waits.due_ns()) is not None and due <= end:
            self.now = max(due, self.now)
            self.waits.work()
        self.now = end

    @property
    def verdicts(self) -> dict[str, int]:
        return {str(verdict): count for (_, verdict), count in self.tally.checks.items()}

    @property
    def finding(self) -> Finding:
        (violation,) = self.tally.violations.values()
        return violation.first


@pytest.fixture
def rig() -> Rig:
    return Rig()


def event(held: str = "write", **more: Any) -> Event:
    made = Event(
        "WAITS_FOR_ITSELF", 10**9, 0, A >> 12, A >> 12, "task", 7,
        lock=LOCK_A, lock_class=CLASSES.index("i_mmap"), wanted=0, held=int(held == "write"),
    )  # fmt: skip
    return replace(made, **more)


def test_wait_for_an_own_write_hold_is_a_violation_at_once(rig: Rig) -> None:
    rig.waits.read_event(event())
    finding = rig.finding
    assert rig.verdicts == {"violated": 1}
    assert finding.signature == "L7 violated vma_modify waits for its own i_mmap_rwsem"
    assert finding.summary == (
        "task[10] waits for the i_mmap_rwsem (to read), which it has for write itself: it waits"
        " for ever"
    )
    assert finding.evidence["trail_note"] == "[] [10]"


def test_second_lock_of_a_class_is_named_by_the_class(rig: Rig) -> None:
    rig.waits.read_event(event(lock_class=CLASSES.index("i_mmap2")))
    assert rig.finding.shape == "waits for its own i_mmap_rwsem"


def test_wait_that_the_probe_reported_is_not_reported_again(rig: Rig) -> None:
    rig.sleepers = [sleeper(A, wants(LOCK_A, A), frames=IN_WINDOW)]
    rig.waits.read_event(event())
    rig.waits.read_event(event())
    rig.run(100)
    assert rig.verdicts == {"violated": 1}


def test_wait_that_began_before_the_probe_was_attached_is_found_by_two_looks(rig: Rig) -> None:
    rig.sleepers = [sleeper(A, wants(LOCK_A, A))]
    rig.run(0.1)
    assert rig.verdicts == {}
    rig.run(1)
    assert rig.verdicts == {"violated": 1}
    assert "waits for the anon_vma rwsem (to write), which it has for write itself" in (
        rig.finding.summary
    )


def test_own_read_hold_is_believed_when_one_reader_keeps_the_task_waiting(rig: Rig) -> None:
    rig.sleepers = [sleeper(A, wants(LOCK_A, readers=1))]
    rig.waits.read_event(event("read"))
    rig.run(4)
    assert rig.verdicts == {}
    rig.run(2)
    assert rig.verdicts == {"violated": 1}
    assert "which it has for read itself" in rig.finding.summary


@pytest.mark.parametrize("then", [[], [sleeper(A, wants(LOCK_A, B, readers=0))]])
def test_own_read_hold_whose_release_was_missed_is_forgotten(rig: Rig, then: list[Sleeper]) -> None:
    """The task got the lock; or a writer has it, so that nobody reads."""
    rig.sleepers = then
    rig.waits.read_event(event("read"))
    rig.run(20)
    assert rig.verdicts == {}
    assert rig.waits.counts["own reads given back"] == 1


def test_second_reader_may_be_the_one_that_is_waited_for(rig: Rig) -> None:
    rig.sleepers = [sleeper(A, wants(LOCK_A, readers=2))]
    rig.waits.read_event(event("read"))
    rig.run(20)
    assert rig.verdicts == {}
    rig.run(20)
    assert rig.verdicts == {"suspect": 1}


def test_ring_of_writers_is_a_violation_at_the_second_look(rig: Rig) -> None:
    rig.sleepers = [sleeper(A, wants(LOCK_B, B, "i_mmap")), sleeper(B, wants(LOCK_A, A))]
    rig.run(1)
    assert rig.verdicts == {"violated": 1}
    finding = rig.finding
    assert finding.shape == "ring of anon_vma rwsem and i_mmap_rwsem"
    assert finding.summary == (
        "2 tasks wait for each other for ever: task[10] waits for the i_mmap_rwsem of task[11],"
        " task[11] waits for the anon_vma rwsem of task[10]"
    )
    assert [one["task"] for one in finding.evidence["ring"]] == ["task[10]", "task[11]"]
    rig.run(100)
    assert rig.verdicts == {"violated": 1}, "once"


def test_task_that_waits_for_a_ring_is_no_part_of_it(rig: Rig) -> None:
    rig.sleepers = [
        sleeper(C, wants(LOCK_A, A)),
        sleeper(A, wants(LOCK_B, B)),
        sleeper(B, wants(LOCK_A, A)),
    ]
    rig.run(1)
    assert rig.verdicts == {"violated": 1}
    assert "task[12]" not in rig.finding.summary
    rig.run(60)
    assert rig.verdicts == {"violated": 1, "suspect": 1}, "it waits for long, too"


def test_ring_through_a_reader_of_an_mmap_lock_needs_the_limit(rig: Rig) -> None:
    reads = wants(LOCK_B, kind="mmap", part_of=MM, readers=1, since_ns=2 * 10**9)
    rig.sleepers = [
        sleeper(A, wants(LOCK_A, B, since_ns=2 * 10**9), held={MM: False}),
        sleeper(B, reads),
    ]
    rig.run(29)
    assert rig.verdicts == {}
    rig.run(10)
    assert rig.verdicts == {"violated": 1}
    assert "task[11] waits for the mmap_lock of task[10]" in rig.finding.summary


@pytest.mark.parametrize("tids", [(9, 10, 11), (10, 11, 9)])
def test_ring_is_found_beside_a_reader_that_waits_for_nothing(
    rig: Rig, tids: tuple[int, ...]
) -> None:
    """The iterator lists tasks by their pids: the other reader may come first."""
    reads = wants(LOCK_B, kind="mmap", part_of=MM, readers=2, since_ns=2 * 10**9)
    other, first, second = tids
    found = [
        sleeper(0xF000, held={MM: False}, frames=IN_IO, tid=other),
        sleeper(A, wants(LOCK_A, B, since_ns=2 * 10**9), held={MM: False}, tid=first),
        sleeper(B, reads, tid=second),
    ]
    rig.sleepers = sorted(found, key=lambda one: one.tid)
    rig.run(60)
    assert rig.verdicts["violated"] == 1


def test_ring_through_a_reader_is_a_suspect_where_releases_were_missed(rig: Rig) -> None:
    """The task may have released the lock that it seems to hold, and wait for another reader."""
    reads = wants(LOCK_B, kind="mmap", part_of=MM, readers=1, since_ns=2 * 10**9, wanted="read")
    rig.missed = True
    rig.sleepers = [sleeper(A, reads, held={MM: False})]
    rig.run(60)
    assert rig.verdicts == {"suspect": 1}
    assert "or a reader has released its mmap_lock unseen" in rig.finding.summary


def test_ring_of_owners_is_proven_whatever_was_missed(rig: Rig) -> None:
    rig.missed = True
    rig.sleepers = [sleeper(A, wants(LOCK_B, B)), sleeper(B, wants(LOCK_A, A))]
    rig.run(1)
    assert rig.verdicts == {"violated": 1}


def test_fork_that_waits_for_the_monitor_of_its_userfaultfd_is_no_long_wait(rig: Rig) -> None:
    rig.sleepers = [sleeper(A, frames=(8, 3, 4))]
    rig.run(60)
    assert rig.verdicts == {}


def test_tasks_that_run_between_two_looks_are_no_ring(rig: Rig) -> None:
    def look() -> list[Sleeper]:
        rig.looks += 1
        now = {"switches": rig.looks}
        return [
            sleeper(A, wants(LOCK_B, B, since_ns=rig.now), **now),
            sleeper(B, wants(LOCK_A, A, since_ns=rig.now), **now),
        ]

    rig.read = look
    rig.run(100)
    assert rig.looks > 20
    assert rig.verdicts == {}


@pytest.mark.parametrize(
    ("wait", "frames", "text"),
    [
        (
            wants(LOCK_A, B),
            WAITING,
            "task[10] has waited for the anon_vma rwsem (to write) for 30 s in ksys(), and the task"
            " at 0xb000 has it for write, which does not sleep",
        ),
        (
            wants(LOCK_A, B, writer_tid=11, writer_comm="holder"),
            WAITING,
            "task[10] has waited for the anon_vma rwsem (to write) for 30 s in ksys(), and"
            " holder[11] has it for write, which does not sleep",
        ),
        (
            wants(LOCK_A, kind="mmap", readers=2),
            WAITING,
            "task[10] has waited for the mmap_lock (to write) for 30 s in ksys(), and 2 have it for"
            " read",
        ),
        (
            None,
            IN_WINDOW,
            "task[10] has slept for 30 s in vma_modify()",
        ),
    ],
)
def test_wait_over_the_limit_is_a_suspect(
    rig: Rig, wait: LockWait | None, frames: tuple[int, ...], text: str
) -> None:
    rig.sleepers = [sleeper(A, wait, frames=frames)]
    rig.run(29)
    assert rig.verdicts == {}
    rig.run(40)
    assert rig.verdicts == {"suspect": 1}, "once"
    assert rig.finding.summary == text
    assert rig.finding.evidence["asleep_seconds"] >= 30


def test_time_in_which_the_checker_did_not_run_is_no_wait(rig: Rig) -> None:
    rig.sleepers = [sleeper(A, wants(LOCK_A, B, since_ns=rig.now))]
    rig.run(6)
    rig.stalls.look(rig.now)
    rig.now += 60 * 10**9
    rig.stalls.look(rig.now)
    rig.run(20)
    assert rig.verdicts == {}
    rig.run(10)
    assert rig.verdicts == {"suspect": 1}


@pytest.mark.parametrize(
    ("wait", "frames"),
    [
        (None, IN_IO),
        (wants(LOCK_A, B, "i_rwsem"), IN_IO),
        (wants(LOCK_A, B, queued=False), IN_IO),  # a wait that is over
    ],
)
def test_long_sleep_that_concerns_no_mm_is_none_of_ours(
    rig: Rig, wait: LockWait | None, frames: tuple[int, ...]
) -> None:
    rig.sleepers = [sleeper(A, wait, frames=frames)]
    rig.run(200)
    assert rig.verdicts == {}
    assert rig.waits.counts["not of an mm"] == 1, "its stack is read once"


def test_task_that_sleeps_anew_is_suspected_anew(rig: Rig) -> None:
    rig.sleepers = [sleeper(A, frames=IN_WINDOW)]
    rig.run(40)
    rig.sleepers = []
    rig.run(10)
    rig.sleepers = [sleeper(A, frames=IN_WINDOW, switches=9)]
    rig.run(40)
    assert rig.verdicts == {"suspect": 2}


def test_end_of_a_run_looks_once_more(rig: Rig) -> None:
    rig.sleepers = [sleeper(A, wants(LOCK_A, A))]
    rig.run(0.1)
    rig.waits.close()
    assert rig.verdicts == {"violated": 1}


def test_kernel_without_the_iterator_has_the_probe_alone() -> None:
    rig = Rig(iterator=False)
    assert rig.waits.due_ns() is None
    rig.waits.work()
    rig.waits.close()
    rig.waits.read_event(event())
    assert rig.verdicts == {"violated": 1}


@pytest.mark.parametrize(
    ("stack", "function"),
    [
        (("rwsem_down_read_slowpath+0x1", "down_read+0x2", "huge_pmd_share+0x3"), "huge_pmd_share"),
        (("__schedule+0x1", "schedule+0x1", "f.isra.0+0x2 [module]"), "f"),
        (("f+0x1",), "f"),
        (("schedule+0x1",), "unknown"),
        ((), "unknown"),
    ],
)
def test_function_that_waits_is_the_one_below_the_lock(
    stack: tuple[str, ...], function: str
) -> None:
    assert caller(stack) == function


def test_function_of_a_frame_has_no_suffixes() -> None:
    assert function_of("vma_modify.constprop.0+0x12/0x34 [x]") == "vma_modify"
