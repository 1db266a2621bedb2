"""The CPU budget of the HTTP thread, which shares the interpreter with the checker."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable

SHARE = 0.2
"""The share of one CPU in the long run."""
SAVED_SECONDS = 1.0
"""The CPU time that an idle server may save for a burst."""
_MIN_SLEEP_SECONDS = 0.1
"""The shortest sleep: a wake-up costs CPU time too, and frequent ones would use up the budget."""


class Budget:
    """A token bucket of CPU seconds, filled with SHARE seconds per second.

    used: returns the CPU seconds used so far. clock: monotonic seconds.
    """

    def __init__(
        self,
        used: Callable[[], float] = time.thread_time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._used, self._clock = used, clock
        self._left, self._was_used, self._was = SAVED_SECONDS, used(), clock()
        self._first = defaultdict[float, asyncio.Lock](asyncio.Lock)

    def left(self) -> float:
        """Return the CPU seconds that may be used now; negative after an overdraft."""
        used, now = self._used(), self._clock()
        self._left = min(SAVED_SECONDS, self._left + (now - self._was) * SHARE) - (
            used - self._was_used
        )
        self._was_used, self._was = used, now
        return self._left

    async def wait(self, reserve: float = 0.0) -> None:
        """Wait until at least `reserve` CPU seconds are left.

        Only the first waiter of each reserve polls; the next one follows when that one is done.
        """
        async with self._first[reserve]:
            while (left := self.left() - reserve) < 0:
                await asyncio.sleep(min(1.0, max(_MIN_SLEEP_SECONDS, -left / SHARE)))
