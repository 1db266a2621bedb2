"""Time that passes only when a test says so: for code with a clock, for modules that use `time`, and for event loops."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable

SAFETY_SECONDS = 120.0
"""How long a test waits for what must happen, on however busy a machine: never part of what it asserts."""


class Clock:
    """Put in place of the module `time` of the code that is tested. sleep() moves it; so does a test, by `now` (seconds)."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def monotonic(self) -> float:
        return self.now

    def time_ns(self) -> int:
        return int(self.now * 10**9)

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        time.sleep(0)  # others run


class ManualLoop(asyncio.SelectorEventLoop):
    """An event loop whose time stands still until advance() is called, from another thread."""

    def __init__(self) -> None:
        self.now = 1000.0
        super().__init__()

    def time(self) -> float:
        return self.now

    def turn(self, turns: int = 20) -> None:
        """Wait until the loop has gone round this often: what it can do without time passing, it has done."""
        for _ in range(turns):
            gone_round = threading.Event()
            self.call_soon_threadsafe(gone_round.set)
            assert gone_round.wait(SAFETY_SECONDS)

    def advance(self, seconds: float) -> None:
        self.turn()
        self.call_soon_threadsafe(self._move, seconds)
        self.turn()

    def _move(self, seconds: float) -> None:
        self.now += seconds


def until(holds: Callable[[], object], why: str = "it does not happen") -> None:
    """Wait for something that another thread or process does."""
    end = time.monotonic() + SAFETY_SECONDS
    while not holds():
        assert time.monotonic() < end, why
        time.sleep(0.01)
