"""L7: find tasks that wait for themselves, for each other, or for too long.

A probe reports a task when it begins to wait for an rwsem that it owns for write. Every few seconds
an iterator lists the tasks that sleep uninterruptibly. One that has not run between two looks has
slept since the first. What such a task waits for, and who holds that, shows rings; and what sleeps
beyond the limit is a suspect if it waits for a lock of an mm or is inside a window.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tracer.checking.findings import Draft, Explanation
from tracer.checking.stalls import Stalls
from tracer.checking.trail import Trail, Trails
from tracer.checking.verdicts import Verdicts
from tracer.invariants.lock_waits import NO_SELF_WAIT
from tracer.invariants.verdict import Finding, Verdict
from tracer.memory.sleepers import LockWait, Sleeper
from tracer.printable import printable
from tracer.protocol.model import Lock
from tracer.tables.events import Event

LOOK_NS = 5 * 10**9
_SOON_NS = 500_000_000
_READER_NS = 5 * 10**9
_MOST_KNOWN = 256

_OF_MM = (Lock.MMAP, Lock.I_MMAP, Lock.ANON, Lock.VMA, Lock.HUGETLB)

_TAKING = (
    "schedule", "__schedule", "context_switch", "preempt_schedule", "io_schedule",
    "rwsem_down_", "down_read", "down_write", "__down_read", "__down_write", "__rwbase_read_lock",
    "rwbase_write_lock", "rt_mutex_", "rtlock_", "percpu_down", "__percpu_down", "mutex_lock",
    "__mutex_lock", "trace_contention_begin", "__traceiter_contention_begin",
    "__bpf_trace_contention_begin", "mmap_read_lock", "mmap_write_lock", "rcuwait_wait_event",
)  # fmt: skip
"""Functions at the top of a stack that sleep or take a lock, by how their names begin."""
_FRAMES_TAKING = 16

_OF_A_MONITOR = "userfaultfd_event_wait_completion"  # a fork sleeps here, in dup_mmap()
_MORE_WINDOWS = ("__vma_start_write", "exit_mmap", "unmap_and_move_huge_page")
"""Functions that are no windows, and in which no task sleeps for long either."""


@dataclass(frozen=True)
class Asleep:
    """A sleeper, how many looks in a row have found it asleep, and since when it sleeps at least.

    since_ns: CLOCK_MONOTONIC.
    """

    sleeper: Sleeper
    looks: int
    since_ns: int


class LongWaits:
    """Decides L7. Call read_event() for each WAITS_FOR_ITSELF, and work() when due_ns() has come.

    read: returns the sleepers of one look. symbols: addresses of a stack -> names. event_stack:
    names of an event's stack. lock_classes, modes: names by the numbers of events. windows: names
    of functions in which no task sleeps for long. releases_missed: whether a release of an
    mmap_lock may have gone unseen, so that a task seems to hold it. clock: CLOCK_MONOTONIC in
    nanoseconds.
    """

    def __init__(
        self,
        read: Callable[[], Sequence[Sleeper]] | None,
        verdicts: Verdicts,
        symbols: Callable[[Sequence[int]], tuple[str, ...]],
        event_stack: Callable[[Event], tuple[str, ...]],
        trails: Trails,
        lock_classes: Sequence[str],
        modes: Sequence[str],
        windows: Collection[str],
        limit_ns: int,
        stalls: Stalls,
        releases_missed: Callable[[], bool],
        clock: Callable[[], int],
    ) -> None:
        self.limit_ns, self.counts = limit_ns, Counter[str]()
        self._read, self._verdicts, self._symbols = read, verdicts, symbols
        self._event_stack, self._trails, self._clock = event_stack, trails, clock
        self._lock_classes, self._modes, self._stalls = lock_classes, modes, stalls
        self._releases_missed = releases_missed
        self._windows = frozenset({*windows, *_MORE_WINDOWS})
        self._asleep: dict[tuple[int, int], Asleep] = {}
        self._suspected: set[tuple[int, int]] = set()
        self._pending: dict[tuple[int, int], Event] = {}  # by (tid, lock): own read holds
        self._own_waits: dict[tuple[int, int], None] = {}  # (tid, lock), oldest first
        self._due_ns = clock()

    def due_ns(self) -> int | None:
        """Return when work() has something to do; None: never."""
        return self._due_ns if self._read else None

    def read_event(self, event: Event, _raw: bytes = b"") -> None:
        """Record that a task waits for an rwsem that it owns for write.

        That it holds one for read is known by what was recorded only: it is looked at later.
        """
        if self._modes[event.held] == "read":
            self._pending[event.tid, event.lock] = event
            if len(self._pending) > _MOST_KNOWN:
                self._pending.pop(next(iter(self._pending)))
            self._due_ns = min(self._due_ns, self._clock() + _SOON_NS)
        elif not self._know(event.tid, event.lock):
            self._record_own_wait(event)

    def _record_own_wait(self, event: Event) -> None:
        name = _lock_name(self._lock_classes[event.lock_class])
        stack = self._event_stack(event)
        wanted, held = self._modes[event.wanted], self._modes[event.held]
        self._record(
            Verdict.VIOLATED,
            stack,
            f"waits for its own {name}",
            f"{printable(event.comm)}[{event.tid}] waits for the {name} (to {wanted}), which it"
            f" has for {held} itself: it waits for ever",
            event.task,
            {
                "lock": f"{name} at {event.lock:#x}",
                "wanted": wanted,
                "held": held,
                "count": hex(event.count),
                "owner": hex(event.owner),
            },
            self._trails.of_task((), {event.tid}, event.time_ns),
        )

    def _judge_pending(self, now: int) -> None:
        """Decide the waits for a lock that the task holds for read.

        It has the lock if the task waits on, and one reader, and no writer, keeps it from getting
        it for _READER_NS: a release that was missed would have let it have the lock.
        """
        waiting = {
            (one.sleeper.tid, wait.lock): (one, wait)
            for one in self._asleep.values()
            if (wait := one.sleeper.wait) and wait.queued
        }
        for key, event in list(self._pending.items()):
            one, wait = waiting.get(key, (None, None))
            if not one or not wait or wait.writer:
                del self._pending[key]
                self.counts["own reads given back"] += 1
            elif one.looks > 1 and wait.readers == 1 and now - event.time_ns >= _READER_NS:
                del self._pending[key]
                if not self._know(*key):
                    self._record_own_wait(event)

    def work(self) -> None:
        """Look at the sleepers, and report what is wrong."""
        now = self._clock()
        if not self._read or now < self._due_ns:
            return
        self.counts["looks"] += 1
        before, self._asleep = self._asleep, {}
        for sleeper in self._read():
            was = before.get(sleeper.key)
            same = was is not None and was.sleeper.switches == sleeper.switches
            since = was.since_ns if was and same else now
            if sleeper.wait and sleeper.wait.queued:
                since = min(since, sleeper.wait.since_ns)
            self._asleep[sleeper.key] = Asleep(sleeper, was.looks + 1 if was and same else 1, since)
        self._suspected &= {key for key, one in self._asleep.items() if one.looks > 1}
        self.counts["sleepers"] = len(self._asleep)
        self._judge_pending(now)
        ringed = set[int]()
        for ring in self._rings(now):
            ringed |= {one.sleeper.task for one in ring}
            self._record_ring(ring, now)
        for one in self._asleep.values():
            if (
                self._stalls.age(one.since_ns, now) >= self.limit_ns
                and one.sleeper.task not in ringed
            ):
                self._suspect(one, now)
        waits = self._pending or any(
            self._holders(one, now) for one in self._asleep.values() if one.looks == 1
        )
        self._due_ns = self._clock() + (_SOON_NS if waits else LOOK_NS)

    def close(self) -> None:
        """Look once more: what sleeps now, and at the look before, has slept since."""
        self._due_ns = self._clock()
        self.work()

    # rings
    def _rings(self, now: int) -> Iterator[list[Asleep]]:
        """Yield the rings that are not known yet. A task that waits for itself is a ring of one."""
        seen = set[tuple[int, int]]()
        for start in self._asleep.values():
            path, left = list[Asleep](), [iter([start])]
            while left:
                one = next(left[-1], None)
                if one is None:
                    left.pop()
                    del path[-1:]
                elif one in path:
                    ring = path[path.index(one) :]
                    if not self._is_known(ring):
                        yield ring
                elif one.looks > 1 and one.sleeper.key not in seen:
                    seen.add(one.sleeper.key)
                    path.append(one)
                    left.append(iter(self._holders(one, now)))

    def _holders(self, one: Asleep, now: int) -> list[Asleep]:
        """Return the sleepers that have the lock that this one waits for.

        The writer is known by the owner field. Readers of an mmap_lock are known by what was
        recorded, which is believed when the task has slept beyond the limit.
        """
        wait = one.sleeper.wait
        if not wait or not wait.queued:
            return []
        if wait.writer:
            return [other for other in self._asleep.values() if other.sleeper.task == wait.writer]
        late = self._stalls.age(one.since_ns, now) >= self.limit_ns
        if wait.lock_class != "mmap" or not wait.readers or not late:
            return []
        return [o for o in self._asleep.values() if wait.part_of in (o.sleeper.held or {})]

    def _is_known(self, ring: Sequence[Asleep]) -> bool:
        known = [self._know(o.sleeper.tid, o.sleeper.wait.lock) for o in ring if o.sleeper.wait]
        return any(known)

    def _know(self, tid: int, lock: int) -> bool:
        """Remember a wait that is reported; return whether it was known."""
        known = (tid, lock) in self._own_waits
        self._own_waits[tid, lock] = None
        if len(self._own_waits) > _MOST_KNOWN:
            self._own_waits.pop(next(iter(self._own_waits)))
        return known

    def _record_ring(self, ring: Sequence[Asleep], now: int) -> None:
        first = ring[0].sleeper
        stack = self._symbols(first.frames)
        waits = [one.sleeper.wait for one in ring if one.sleeper.wait]
        names = [_lock_name(wait.lock_class) for wait in waits]
        if len(ring) == 1:
            shape = f"waits for its own {names[0]}"
            held = f"which it has for {'write' if waits[0].writer else 'read'} itself"
            wanted = f"waits for the {names[0]} (to {waits[0].wanted})"
            text = f"{_name(first)} {wanted}, {held}: it waits for ever"
        else:
            shape = f"ring of {' and '.join(sorted(names))}"
            links = [
                f"{_name(one.sleeper)} waits for the {name} of {_name(after.sleeper)}"
                for one, name, after in zip(ring, names, [*ring[1:], ring[0]], strict=True)
            ]
            text = f"{len(ring)} tasks wait for each other for ever: {', '.join(links)}"
        verdict = Verdict.VIOLATED
        if not all(wait.writer for wait in waits) and self._releases_missed():
            verdict = Verdict.SUSPECT
            text += "; or a reader has released its mmap_lock unseen: the kernel left out runs"
        self._record(
            verdict,
            stack,
            shape,
            text,
            _task(first),
            {"ring": [self._described(one, now) for one in ring]},
            self._trails.of_task(
                {one.sleeper.mm for one in ring} - {0}, {one.sleeper.tid for one in ring}, now
            ),
        )

    # waits that are too long
    def _suspect(self, one: Asleep, now: int) -> None:
        """Report what sleeps for too long, if it waits for a lock of an mm or in a window."""
        sleeper = one.sleeper
        if sleeper.key in self._suspected or one.looks < 2:
            return
        self._suspected.add(sleeper.key)
        stack = self._symbols(sleeper.frames)
        names = [function_of(frame) for frame in stack]
        wait = sleeper.wait if sleeper.wait and sleeper.wait.queued else None
        if wait and (sleeper.tid, wait.lock) in self._own_waits:
            return
        inside = next((name for name in names if name in self._windows), "")
        of_mm = wait is not None and wait.lock_class in _OF_MM
        if (not of_mm and not inside) or _OF_A_MONITOR in names:
            self.counts["not of an mm"] += 1
            return
        age = (now - one.since_ns) / 1e9
        by = f", called by {inside}()" if inside not in ("", caller(stack)) else ""
        place = f"in {caller(stack)}(){by}"
        if wait:
            name = _lock_name(wait.lock_class)
            shape = f"waits for long for {name}"
            text = (
                f"{_name(sleeper)} has waited for the {name} (to {wait.wanted}) for {age:.0f} s"
                f" {place}{self._holder(wait)}"
            )
        else:
            shape = "sleeps for long"
            text = f"{_name(sleeper)} has slept for {age:.0f} s {place}"
        self._record(
            Verdict.SUSPECT,
            stack,
            f"{shape} in {inside}" if inside else shape,
            text,
            _task(sleeper),
            self._described(one, now),
            self._trails.of_task({sleeper.mm} - {0}, {sleeper.tid}, now),
        )

    def _holder(self, wait: LockWait) -> str:
        """Return who has a lock, in words: behind the text of a wait."""
        if wait.writer:
            sleeps = any(one.sleeper.task == wait.writer for one in self._asleep.values())
            named = _named(wait.writer_comm, wait.writer_tid) if wait.writer_tid else ""
            who = named or f"the task at {wait.writer:#x}"
            return f", and {who} has it for write" + ("" if sleeps else ", which does not sleep")
        if not wait.readers:
            return ""
        known = [
            _name(o.sleeper)
            for o in self._asleep.values()
            if wait.lock_class == "mmap" and wait.part_of in (o.sleeper.held or {})
        ]
        by = f", among them {', '.join(known)}" if known else ""
        return f", and {wait.readers} {'has' if wait.readers == 1 else 'have'} it for read{by}"

    def _described(self, one: Asleep, now: int) -> dict[str, Any]:
        """Return the evidence about one sleeper."""
        sleeper, wait = one.sleeper, one.sleeper.wait
        found: dict[str, Any] = {
            "task": _name(sleeper),
            "mm": hex(sleeper.mm),
            "asleep_seconds": round((now - one.since_ns) / 1e9, 3),
            "stack": list(self._symbols(sleeper.frames)),
        }
        if wait:
            name = _lock_name(wait.lock_class)
            found |= {
                "lock": f"{name} at {wait.lock:#x}",
                "part_of": hex(wait.part_of),
                "wanted": wait.wanted,
                "queued": wait.queued,
                "writer": hex(wait.writer),
                "readers": wait.readers,
            }
        if sleeper.held:
            found["holds_mmap_lock_of"] = {
                hex(mm): "write" if write else "read" for mm, write in sleeper.held.items()
            }
        return found

    def _record(
        self,
        verdict: Verdict,
        stack: tuple[str, ...],
        shape: str,
        summary: str,
        task: dict[str, Any],
        evidence: dict[str, Any],
        trail: Trail,
    ) -> None:
        self.counts[str(verdict)] += 1
        outline = Finding(NO_SELF_WAIT.id, verdict, caller(stack), shape, "")
        explained = Explanation(summary, task, stack, evidence, trail)
        self._verdicts.record(Draft(outline, lambda: explained))


def function_of(frame: str) -> str:
    """Return the function of a frame of a stack, `f.isra.0+0x12 [module]`, without its suffixes."""
    return frame.partition("+")[0].partition(".")[0]


def caller(stack: Sequence[str]) -> str:
    """Return the function that sleeps or takes a lock: the first one below those that do it."""
    names = [function_of(frame) for frame in stack]
    taking = [n for n, name in enumerate(names[:_FRAMES_TAKING]) if name.startswith(_TAKING)]
    below = taking[-1] + 1 if taking else 0
    return names[below] if below < len(names) else "unknown"


def _lock_name(lock_class: str) -> str:
    return "rwsem" if lock_class == Lock.OTHER else Lock(lock_class).family.display_name


def _name(sleeper: Sleeper) -> str:
    return _named(sleeper.comm, sleeper.tid)


def _named(comm: str, tid: int) -> str:
    return f"{printable(comm)}[{tid}]"


def _task(sleeper: Sleeper) -> dict[str, Any]:
    return {"pid": sleeper.tid, "tgid": sleeper.tgid, "comm": sleeper.comm}
