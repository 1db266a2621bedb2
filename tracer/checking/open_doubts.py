"""Open doubts: what looked wrong in an mm is looked at again, narrowly, until it is decided.

A narrow look takes some microseconds, so it seldom meets a writer. Only a doubt about map_count
takes a look at the whole mm. It decides as follows.

- Nothing is wrong there: cleared. The first look met a change half-way.
- The same is wrong in LOOKS looks that no writer disturbed, PAUSES apart: violated.
- The mm is gone: so is the doubt. An mm that is being freed may look wrong.
- Writers were there at each of ATTEMPTS looks: unverifiable.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from tracer.invariants.verdict import Verdict
from tracer.memory.vma_trees import LAST_ADDRESS, Doubt, Look, Trees
from tracer.results.audit import ENDED
from tracer.tables.mm import Mm

LOOKS = 3
PAUSES_NS = (0, 5_000_000, 50_000_000)
"""Before the look that may be the first, second or third to show it."""
ATTEMPTS = 60
MOST_OPEN = 256
_RETRY_NS, _RETRY_GROWTH, _LONGEST_RETRY_NS = 500_000, 1.2, 500_000_000
"""A disturbed look is repeated soon, then later and later: 14 s for all ATTEMPTS."""
_COUNTED_ON_NS = 10_000_000_000
"""How long writers are counted after the last doubt. Each switch changes code on all CPUs."""
_TURN_NS = 1_000_000
"""After which other work gets its turn; the doubts that are still due are next."""
MAP_COUNT = "MAP_COUNT"


@dataclass(frozen=True)
class DecidedDoubt:
    """How a doubt ended.

    verdict: None where its mm is gone. doubts: what was seen, the last time. checks: how many
    checks of each invariant it stands for.
    """

    mm: Mm
    verdict: Verdict | None
    reason: str
    doubts: tuple[Doubt, ...]
    checks: Mapping[str, int]
    low: int
    high: int


@dataclass
class OpenDoubt:
    """A range of an mm that looked wrong. first: what was seen at first.

    A look at a node of the maple tree follows the path to the node's first address. That compares
    all slots of the node, and reads nothing else below it. The address before is looked at, too: it
    leads to the leaf on the left.
    """

    mm: Mm
    low: int
    high: int
    first: tuple[Doubt, ...]
    checks: Counter[str]
    due_ns: int
    of_map_count: bool = False
    attempts: int = 0
    seen: int = 0
    same: frozenset[object] | None = None
    last: tuple[Doubt, ...] = ()

    @property
    def of_node(self) -> bool:
        """Whether it is about nodes of the maple tree alone."""
        return not self.of_map_count and not any(doubt.vma for doubt in self.first)


@dataclass
class OpenDoubts:
    """The doubts that are not decided yet.

    count_writers(on): counts writers of mmap_locks from now on, or no more; returns why it cannot,
    or an empty text. It is used only where the kernel itself does not count them. invariant_of:
    problem -> invariant. clock: CLOCK_MONOTONIC in nanoseconds. ended: doubts by how they ended.
    looks: how many were made.
    """

    reader: Trees
    count_writers: Callable[[bool], str]
    invariant_of: Mapping[str, str]
    clock: Callable[[], int]
    open: list[OpenDoubt] = field(default_factory=list)
    ended: Counter[str] = field(default_factory=Counter)
    looks: int = 0
    _counting: bool = False
    _stop_ns: int = 0

    def add(self, mm: Mm, doubts: Iterable[Doubt]) -> list[DecidedDoubt]:
        """Open a doubt for each range that looked wrong; return those that there is no room for."""
        groups: dict[tuple[int, int, bool], list[Doubt]] = {}
        for doubt in doubts:
            of_map_count = MAP_COUNT in doubt.problems
            low, high = (0, LAST_ADDRESS) if of_map_count else (doubt.low, doubt.high)
            groups.setdefault((low, high, of_map_count), []).append(doubt)
        refused = []
        for (low, high, of_map_count), group in groups.items():
            checks = self.checks_of(group)
            if len(self.open) < MOST_OPEN:
                one = OpenDoubt(mm, low, high, tuple(group), checks, self.clock(), of_map_count)
                self.open.append(one)
            else:
                reason = f"{MOST_OPEN} doubts were open already"
                self.ended[ENDED[Verdict.UNVERIFIABLE]] += 1
                refused.append(
                    DecidedDoubt(mm, Verdict.UNVERIFIABLE, reason, tuple(group), checks, low, high)
                )
        return refused

    def checks_of(self, doubts: Iterable[Doubt]) -> Counter[str]:
        """Return how many checks of each invariant these doubts are about."""
        checks = Counter[str]()
        for doubt in doubts:
            checks.update({self.invariant_of[problem] for problem in doubt.problems})
        return checks

    def due_ns(self) -> int | None:
        """When work() has something to do; None: nothing is open, and no writers are counted."""
        idle = self._stop_ns if self._counting else None
        return min((one.due_ns for one in self.open), default=idle)

    def work(self) -> list[DecidedDoubt]:
        """Look at the doubts that are due, and return those that are decided now."""
        decided, left, now = [], [], self.clock()
        for one in sorted(self.open, key=lambda one: one.due_ns):
            late = self.clock() - now > _TURN_NS
            if late or one.due_ns > now or not (ended := self._look(one)):
                left.append(one)
                continue
            self.ended[ENDED[ended.verdict]] += 1
            decided.append(ended)
        self.open = left
        if left or decided:
            self._stop_ns = self.clock() + _COUNTED_ON_NS
        elif self._counting and now >= self._stop_ns:
            self.count_writers(False)
            self._counting = False
        return decided

    def finish(self) -> list[DecidedDoubt]:
        """End what is still open as unverifiable."""
        left, self.open = self.open, []
        if left:
            self.ended[ENDED[Verdict.UNVERIFIABLE]] += len(left)
        reason = "the run ended before it could be looked at again"
        return [self._end(one, Verdict.UNVERIFIABLE, reason) for one in left]

    def _end(self, one: OpenDoubt, verdict: Verdict | None, reason: str) -> DecidedDoubt:
        doubts = one.last or one.first
        return DecidedDoubt(one.mm, verdict, reason, doubts, one.checks, one.low, one.high)

    def _look(self, one: OpenDoubt) -> DecidedDoubt | None:
        """Look once; return the decision, or None: it is looked at again when it is due."""
        counting = self._counting
        if any(doubt.leads_nowhere for doubt in one.first):
            self.reader.renew_memory_end()  # memory that was added may be in use already
        low, high = (max(one.low - 1, 0), one.low) if one.of_node else (one.low, one.high)
        look = self.reader.look(one.mm, low, high)
        self.looks += 1
        doubts = _about(look, of_map_count=one.of_map_count)
        one.attempts += 1
        if look.complete and not look.alive:
            return self._end(one, None, "the mm is gone")
        compared = look.undisturbed and look.whole
        if look.complete and not doubts and (compared or not one.of_map_count):
            return self._end(one, Verdict.HOLDS, "a narrow look shows nothing wrong")
        disturbed = not look.undisturbed or any(doubt.raced for doubt in doubts) or not doubts
        if look.complete and not disturbed and not (counting or look.counts_writers):
            if why := self._start_counting():
                return self._end(one, Verdict.UNVERIFIABLE, why)
        elif look.complete and not disturbed:
            return self._seen(one, doubts)
        retry_ns = int(_RETRY_NS * _RETRY_GROWTH**one.attempts)
        one.due_ns = self.clock() + min(retry_ns, _LONGEST_RETRY_NS)
        if one.attempts >= ATTEMPTS:
            reason = (
                f"a writer was there at most of {ATTEMPTS} looks"
                if look.whole
                else "a part of the tree could not be looked at"
            )
            return self._end(one, Verdict.UNVERIFIABLE, reason)
        return None

    def _seen(self, one: OpenDoubt, doubts: Sequence[Doubt]) -> DecidedDoubt | None:
        """Take in a look that no writer disturbed and that shows something wrong."""
        now = frozenset[object](doubt.identity for doubt in doubts)
        same = now if one.same is None else one.same & now
        one.same, one.seen = (same, one.seen + 1) if same else (now, 1)
        one.last = tuple(doubt for doubt in doubts if doubt.identity in one.same)
        if one.seen >= LOOKS:
            reason = f"seen in {LOOKS} looks that no writer disturbed"
            return self._end(one, Verdict.VIOLATED, reason)
        one.due_ns = self.clock() + PAUSES_NS[one.seen]
        if one.attempts >= ATTEMPTS:
            reason = f"it changed from look to look, {ATTEMPTS} times"
            return self._end(one, Verdict.UNVERIFIABLE, reason)
        return None

    def _start_counting(self) -> str:
        """Have writers counted, which the kernel does not; return why that is not possible."""
        why = self.count_writers(True)
        self._counting = not why
        return f"writers of mmap_lock cannot be counted: {why}" if why else ""


def _about(look: Look, *, of_map_count: bool) -> Sequence[Doubt]:
    """Return the doubts of a look that are about map_count, or those that are not."""
    return [one for one in look.doubts if (MAP_COUNT in one.problems) is of_map_count]
