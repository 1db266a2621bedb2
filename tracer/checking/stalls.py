"""Times in which the checker did not run, which no entry, lock or task is blamed for.

A virtual machine that its host stops, or a checker that gets no CPU, looks at things late. What was
under way then grew old without having had the time to go on.
"""

from __future__ import annotations

from collections import deque

_MOST_KNOWN = 64


class Stalls:
    """Keeps the last stalls. pace_ns: the time in which look() is called at least once."""

    def __init__(self, pace_ns: int) -> None:
        self._pace_ns, self._last_ns = pace_ns, 0
        self._stalls = deque[tuple[int, int]](maxlen=_MOST_KNOWN)

    def look(self, now_ns: int) -> None:
        """Note that the checker runs. Three times the pace since the last call is a stall."""
        if self._last_ns and now_ns - self._last_ns > 3 * self._pace_ns:
            self._stalls.append((self._last_ns + self._pace_ns, now_ns))
        self._last_ns = now_ns

    def within(self, since_ns: int, until_ns: int) -> int:
        """Return how much of that time was a stall, in nanoseconds."""
        return sum(max(0, min(until_ns, end) - max(since_ns, begin)) for begin, end in self._stalls)

    def age(self, since_ns: int, now_ns: int) -> int:
        """Return the time since then in which the checker ran."""
        return now_ns - since_ns - self.within(since_ns, now_ns)
