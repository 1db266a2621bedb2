"""Tasks that sleep uninterruptibly, and the rwsem that each waits for, read by value.

A BPF iterator goes over all tasks. It takes no lock of an mm and changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tracer.bpf.links import Readable
from tracer.tables.c_structs import Layouts, names_of


@dataclass(frozen=True)
class LockWait:
    """The last rwsem that a task began to wait for, and that lock now.

    since_ns: CLOCK_MONOTONIC. lock_class: a name of enum lock_class, without CLASS_. part_of: the
    mm, address_space, anon_vma or VMA that the lock is a part of, or 0. wanted: `read` or `write`.
    queued: the task is among the first waiters of the lock now, so it still waits. writer: the task
    that has the lock for write, by address; 0: none has. readers: how many have it for read.
    writer_tid, writer_comm: of the writer, as far as they could be read.
    """

    lock: int
    since_ns: int
    lock_class: str
    part_of: int
    wanted: str
    queued: bool
    writer: int
    readers: int
    writer_tid: int = 0
    writer_comm: str = ""


@dataclass(frozen=True)
class Sleeper:
    """A task that sleeps uninterruptibly.

    task: its address. start_ns: when it began; another task at the same address has another one.
    switches: context switches, which stay the same while it sleeps. mm: its own, or 0. held: mms
    whose mmap_lock it holds, as far as recorded -> whether for write. frames: its kernel stack by
    address, innermost first.
    """

    task: int
    start_ns: int
    switches: int
    mm: int
    tid: int
    tgid: int
    comm: str
    wait: LockWait | None = None
    held: Mapping[int, bool] | None = None
    frames: tuple[int, ...] = ()

    @property
    def key(self) -> tuple[int, int]:
        """What tells this task from all others."""
        return self.task, self.start_ns


class SleeperReader:
    """Reads the tasks that sleep uninterruptibly."""

    def __init__(self, tasks: Readable, layouts: Layouts) -> None:
        """tasks: the iterator `sleepers`."""
        self._tasks, self._layout = tasks, layouts.structs["sleeper"]
        self._classes = names_of(layouts, "lock_class", "CLASS_")
        self._modes = names_of(layouts, "wait_mode", "WAIT_")

    def read(self) -> list[Sleeper]:
        """Return them, in the order of their pids. Raises OSError."""
        raw, size = self._tasks.read(), self._layout.size
        return [
            self._sleeper(self._layout.unpack(raw[at : at + size]))
            for at in range(0, len(raw) - size + 1, size)
        ]

    def _sleeper(self, row: Any) -> Sleeper:
        wait = None
        if row.lock:
            wait = LockWait(
                row.lock,
                row.since_ns,
                self._classes[row.lock_class],
                row.part_of,
                self._modes[row.wanted].lower(),
                bool(row.waiter),
                row.writer,
                row.readers,
                row.writer_tid,
                row.writer_comm,
            )
        held = {mm: bool(row.written >> n & 1) for n, mm in enumerate(row.held) if mm}
        frames = tuple(frame for frame in row.frames if frame)
        return Sleeper(
            row.task, row.start_ns, row.switches, row.mm, row.tid, row.tgid, row.comm, wait, held,
            frames,
        )  # fmt: skip
