"""The state audit: looks at the trees of every mm in turn, within a budget of CPU time.

A pass takes the mms of all tasks, those that changed since their last look first. An mm with many
VMAs is looked at in slices. After each slice the next one waits until the audit's share of a CPU is
back in its budget. A pass that was asked for has a larger share. What looks wrong becomes an
open doubt (tracer.checking.open_doubts). Doubts are looked at without waiting; their CPU time
delays the next slice.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from tracer.checking.findings import Draft
from tracer.checking.open_doubts import (
    MAP_COUNT,
    DecidedDoubt,
    OpenDoubt,
    OpenDoubts,
)
from tracer.checking.verdicts import Verdicts
from tracer.invariants.base import Invariant
from tracer.invariants.verdict import Verdict
from tracer.memory.vma_trees import LAST_ADDRESS, Doubt, Look, OwnedLock, Trees
from tracer.results.audit import AuditProgress
from tracer.tables.mm import Mm

SLICE_VMAS = 2048
"""VMAs of one look: 3 to 5 ms in the kernel (docs/measurements/COST-DETAILS.md)."""
_SLICES_NS = 1_000_000
"""CPU time after which the loop gets its turn again."""
_MOST_REPEATS = 16
"""Of a look with more doubts than are kept: a writer was changing the whole mm under it."""
_LEAST_PAUSE_NS = 1_000_000_000
"""Between two passes."""
_ASKED_SHARE = 0.25
"""Of one CPU, for passes that were asked for."""


@dataclass
class _Known:
    """An mm that is known. looked_ns: its last complete look, or when it was first met."""

    changed: int
    looked_ns: int
    is_new: bool = True


@dataclass
class _Current:
    """The mm whose slices are being looked at, from address `low` on.

    repeats: of this slice. stamp: lock_seq and map_count of the last slice; before 6.4 only the
    second shows a writer. comparable: whether vmas, the VMAs of all slices, must be map_count.
    """

    mm: Mm
    low: int = 0
    repeats: int = 0
    vmas: int = 0
    stamp: tuple[int, int] | None = None
    comparable: bool = True


class StateAudit:
    """Audits every mm. To be called by the thread that owns the checker.

    draft(decided, invariant, doubts) drafts the finding of a violation. note_owned() takes the
    locks that a look found owned for write. budget: the share of one CPU that it may take; 0: it
    makes passes only when asked. clock: CLOCK_MONOTONIC, cpu_clock: CPU time of this thread; both
    in nanoseconds.
    """

    def __init__(
        self,
        reader: Trees,
        invariants: Mapping[str, Invariant],
        verdicts: Verdicts,
        draft: Callable[[DecidedDoubt, str, Sequence[Doubt]], Draft],
        count_writers: Callable[[bool], str],
        note_owned: Callable[[Sequence[OwnedLock]], None],
        budget: float,
        clock: Callable[[], int],
        cpu_clock: Callable[[], int],
    ) -> None:
        self.reader, self._verdicts, self._draft = reader, verdicts, draft
        self._note_owned, self.budget = note_owned, budget
        self._clock, self._cpu_clock = clock, cpu_clock
        self._audited = {name: one.audit for name, one in invariants.items() if one.audit}
        invariant_of = {
            problem: name for name, checks in self._audited.items() for problem in checks.problems
        }
        self._doubts = OpenDoubts(reader, count_writers, invariant_of, clock)
        self._known: dict[tuple[int, int], _Known] = {}
        self._waiting = deque[Mm]()
        self._current: _Current | None = None
        self._counted = Counter[str]()
        self._cpu_ns, self._next_ns = 0, clock()
        self._pass_began_ns = clock()
        self._begun = self._ended = self._asked = 0  # numbers of passes

    def due_ns(self) -> int | None:
        """When work() has something to do; None: never."""
        times = [self._doubts.due_ns(), self._next_ns if self._share() else None]
        return min((time for time in times if time is not None), default=None)

    def work(self) -> None:
        """Look at the doubts that are due, and at the next slices if the budget allows it."""
        began, looks = self._cpu_clock(), self._doubts.looks
        self._decide(self._doubts.work())
        share, now = self._share(), self._clock()
        if share and now < self._next_ns:
            if self._doubts.looks > looks:  # the loop calls this far more often than it is due
                self._next_ns += int((self._cpu_clock() - began) / share)
        elif share:
            while not (ended := self._slice()) and self._cpu_clock() - began < _SLICES_NS:
                pass
            spent = self._cpu_clock() - began
            self._next_ns = self._clock() + int(spent / share)
            if ended and self._ended >= self._asked:
                least = self._pass_began_ns + _LEAST_PAUSE_NS
                self._next_ns = max(self._next_ns, least)
        self._cpu_ns += self._cpu_clock() - began

    def whole_pass(
        self,
        sleep: Callable[[float], None],
        pid: int | None = None,
        seconds: float = 30.0,
        listed: Callable[[int], Callable[[int], None]] = lambda _: lambda _: None,
    ) -> None:
        """Look at every mm now, or at that of one process, and decide every doubt.

        sleep: is called for the time until a doubt is due, in seconds. seconds: after which doubts
        that are still open are unverifiable. listed: is called with the number of mms; it returns
        what is called with how many are done. Its CPU time is not taken out of the budget.
        """
        began = self._cpu_clock()
        self._begin_pass(pid)
        total = len(self._waiting)
        looked = listed(total)
        while self._waiting or self._current:
            self._slice()
            looked(total - len(self._waiting) - bool(self._current))
            self._decide(self._doubts.work())
        end = self._clock() + int(seconds * 1e9)
        while self._doubts.open and self._clock() < end:
            sleep(max(0, (self._doubts.due_ns() or 0) - self._clock()) / 1e9)
            self._decide(self._doubts.work())
        self._decide(self._doubts.finish())
        self._cpu_ns += self._cpu_clock() - began
        self._next_ns = max(self._next_ns, self._clock() + _LEAST_PAUSE_NS)

    def ask(self) -> int:
        """Ask for a whole pass that begins from now on; return its number, for has_ended().

        It has the slices of every pass and waits less between them. A pass that nobody asked for is
        given up for it, one that was asked for ends first.
        """
        if self._ended >= self._asked or self._begun < self._asked:
            self._waiting, self._current = deque(), None
            self._next_ns = self._clock()
        number = self._begun + 1
        self._asked = max(self._asked, number)
        return number

    def has_ended(self, number: int) -> bool:
        """Return whether the pass with this number, or a later one, has looked at every mm."""
        return self._ended >= number

    @property
    def open_doubts(self) -> tuple[OpenDoubt, ...]:
        """The doubts that are not decided yet."""
        return tuple(self._doubts.open)

    def _share(self) -> float:
        """Return the share of one CPU that it may take now."""
        return max(self.budget, _ASKED_SHARE if self._ended < self._asked else 0.0)

    def looks_at_itself(self) -> bool:
        """Look at one mm and count nothing; return whether that works."""
        first = self.reader.mms()[:1]
        return bool(first) and self.reader.look(first[0], most=1).complete

    def progress(self) -> AuditProgress:
        """Return how far the audit has come."""
        oldest = min((one.looked_ns for one in self._known.values()), default=self._clock())
        return AuditProgress(
            dict(self._counted),
            dict(self._doubts.ended),
            len(self._doubts.open),
            len(self._known),
            (self._clock() - oldest) / 1e9,
            self._cpu_ns / 1e9,
            self.budget,
        )

    def _begin_pass(self, pid: int | None = None) -> None:
        """List the mms, those that changed first, and of equals the one not looked at the longest.

        Before 6.4 the kernel has no count of changes, and the iterator gives map_count for it.
        """
        self._begun += 1
        self.reader.renew_memory_end()
        now = self._pass_began_ns = self._clock()
        mms = {(mm.mm, mm.id): mm for mm in self.reader.mms() if pid in (None, mm.tgid)}
        if pid is None:
            self._known = {key: one for key, one in self._known.items() if key in mms}
        for key, mm in mms.items():
            known = self._known.setdefault(key, _Known(mm.changed, now))
            known.is_new |= known.changed != mm.changed
            known.changed = mm.changed

        def order(key: tuple[int, int]) -> tuple[bool, int]:
            return not self._known[key].is_new, self._known[key].looked_ns

        self._waiting, self._current = deque(mms[key] for key in sorted(mms, key=order)), None

    def _slice(self) -> bool:
        """Look at the next slice; return whether that ended a pass."""
        if self._current is None:
            if not self._waiting:
                self._begin_pass()
            if not self._waiting:
                self._ended = self._begun
                return True
            self._current = _Current(self._waiting.popleft())
        current = self._current
        look = self.reader.look(current.mm, current.low, LAST_ADDRESS, SLICE_VMAS)
        if look.doubted > len(look.doubts) and look.alive and current.repeats < _MOST_REPEATS:
            current.repeats += 1
            self._counted["repeated"] += 1
            return False
        self._take(current, look)
        if look.complete and look.alive and look.high < LAST_ADDRESS:
            current.low, current.repeats = look.high + 1, 0
            return False
        self._current = None
        if look.complete and look.alive:
            known = self._known.get((current.mm.mm, current.mm.id))
            if known:
                known.looked_ns, known.is_new = self._clock(), False
        if not self._waiting:
            self._counted["passes"] += 1
            self._ended = self._begun
        return not self._waiting

    def _take(self, current: _Current, look: Look) -> None:
        """Count what a look saw, and open doubts."""
        if not look.complete:
            self._counted["astray"] += 1
            return
        if not look.alive:
            self._counted["mms_gone"] += 1
            return
        counted = Counter(look.counted)
        doubts = [one for one in look.doubts if MAP_COUNT not in one.problems]
        if not current.low:
            counted["mms"] += 1
        stamp = look.lock_seq, look.map_count
        if current.stamp not in (None, stamp) or not (look.undisturbed and look.whole):
            current.comparable = False
        current.stamp = stamp
        current.vmas += look.counted["vmas"]
        if look.high == LAST_ADDRESS:
            counted["map_counts" if current.comparable else "map_counts_disturbed"] += 1
            if current.comparable and current.vmas != look.map_count:
                doubts.append(_map_count_doubt(current, look))
        self._counted.update(counted)
        self._count_checks(counted, look, doubts)
        self._note_owned(look.owned)
        self._decide(self._doubts.add(current.mm, doubts))

    def _count_checks(self, counted: Counter[str], look: Look, doubts: Sequence[Doubt]) -> None:
        """Count one check for all that was looked at, except for what is doubted.

        Doubts that were not kept are unverifiable. Which rule they are about is not known, so they
        count for each rule that the kept ones are about.
        """
        doubted = self._doubts.checks_of(doubts)
        for name, checks in self._audited.items():
            total = sum(counted[what] for what in checks.counted)
            lost = look.doubted - len(look.doubts) if doubted[name] else 0
            self._verdicts.add(name, Verdict.UNVERIFIABLE, min(lost, total))
            self._verdicts.add(name, Verdict.HOLDS, max(0, total - lost - doubted[name]))

    def _decide(self, decided: Iterable[DecidedDoubt]) -> None:
        """Count decided doubts, and record a finding for each rule that is violated."""
        for one in decided:
            seen = self._doubts.checks_of(one.doubts)
            for name in [*one.checks, *(seen.keys() - one.checks.keys())]:
                about = [d for d in one.doubts if name in self._doubts.checks_of([d])]
                count = one.checks.get(name, 1)
                if one.verdict is Verdict.VIOLATED and about:
                    self._verdicts.record(self._draft(one, name, about), count)
                elif one.verdict is Verdict.VIOLATED:
                    self._verdicts.add(name, Verdict.HOLDS, count)
                elif one.verdict is not None:
                    self._verdicts.add(name, one.verdict, count)


def _map_count_doubt(current: _Current, look: Look) -> Doubt:
    return Doubt(
        (MAP_COUNT,),
        False,
        0,
        current.mm.mm,
        current.vmas,
        look.map_count,
        0,
        LAST_ADDRESS,
    )
