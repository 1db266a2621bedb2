"""When the kernel missed runs of programs: only checks that were under way then are doubted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Protocol

_MOST_SPANS = 256


class MissedRuns:
    """Spans of time in which a count of missed runs grew.

    count: missed runs since the programs were loaded; it never falls. clock: CLOCK_MONOTONIC in
    nanoseconds, as the kernel's events have it. Runs that were missed before the first look may
    have been missed at any time before. A run was missed at some moment between two looks, so a
    look once a second keeps the spans short.
    """

    def __init__(self, count: Callable[[], int], clock: Callable[[], int]) -> None:
        self._count, self._clock = count, clock
        self._known = self._looked_ns = 0
        self._spans: list[tuple[int, int]] = []

    def look(self) -> None:
        """Note a span if the count has grown since the last look."""
        before, count, after = self._clock(), self._count(), self._clock()
        if count > self._known:
            if self._spans and self._spans[-1][1] >= self._looked_ns:
                self._spans[-1] = self._spans[-1][0], after
            else:
                self._spans.append((self._looked_ns, after))
            if len(self._spans) > _MOST_SPANS:
                self._join_nearest()
        self._known, self._looked_ns = count, before

    def _join_nearest(self) -> None:
        """Make one span of the two nearest.

        The list is bounded, no missed run is forgotten, and the time between the two is doubted as
        well.
        """
        gaps = [later[0] - earlier[1] for earlier, later in pairwise(self._spans)]
        at = gaps.index(min(gaps))
        self._spans[at : at + 2] = [(self._spans[at][0], self._spans[at + 1][1])]

    def during(self, since_ns: int, until_ns: int) -> bool:
        """Whether a run may have been missed in this time, as far as the last look knows.

        Both ends are included.
        """
        return any(start < until_ns and since_ns <= end for start, end in self._spans)

    @property
    def spans(self) -> int:
        """How many spans are kept."""
        return len(self._spans)

    @property
    def last_ns(self) -> int | None:
        """The end of the last span; None where no run was ever missed."""
        return self._spans[-1][1] if self._spans else None


class HookLosses(Protocol):
    """What the checker must know of rmapd's own hooks before it decides.

    look() brings it up to date; the rest are pure reads.
    """

    @property
    def unbroken(self) -> Mapping[str, MissedRuns]:
        """By invariant: missed runs of the programs that Invariant.unbroken names."""

    @property
    def windows_missed(self) -> int:
        """Runs of programs of windows that were missed so far, and changes of their hooks.

        A change: a hook was detached, or came back.
        """

    def look(self) -> frozenset[str]:
        """Look at the hooks and at the counts of missed runs. Return the invariants covered now."""
