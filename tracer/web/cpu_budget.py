"""How much of the CPU the HTTP thread may have: the judge shares an interpreter with it and must not wait for it."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable

SHARE = 0.2
"""Of one CPU, in the long run."""
SAVED_SECONDS = 1.0
"""CPU time that a quiet server may save up for a burst."""
_NAP_SECONDS = 0.1
"""The least to wait for more. Waking up takes CPU time too: who wakes just when there is enough uses it up by that, for ever."""


class Budget:
    """A bucket of CPU seconds. wait() returns at once while there is some left, and else as soon as there is again."""

    def __init__(
        self,
        used: Callable[[], float] = time.thread_time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._used, self._clock = used, clock
        self._left, self._was_used, self._was = SAVED_SECONDS, used(), clock()
        self._first = defaultdict[float, asyncio.Lock](asyncio.Lock)

    def left(self) -> float:
        """CPU seconds that may be spent now; negative where more was spent than there was."""
        used, now = self._used(), self._clock()
        self._left = min(SAVED_SECONDS, self._left + (now - self._was) * SHARE) - (
            used - self._was_used
        )
        self._was_used, self._was = used, now
        return self._left

    async def wait(self, reserve: float = 0.0) -> None:
        """Until more than the reserve is left. Every client waits alike: who asks much makes the page slow, never the judge.

        Of those with the same reserve only the first looks, and the next one when that has used what it waited for.
        """
        async with self._first[reserve]:
            while (left := self.left() - reserve) < 0:
                await asyncio.sleep(min(1.0, max(_NAP_SECONDS, -left / SHARE)))
