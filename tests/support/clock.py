"""Clocks that a test moves: for code with a clock, for modules that use `time`, for event loops."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable

SAFETY_SECONDS = 120.0
"""The time limit of waiting for an event on a busy machine; no test asserts a duration by it."""


class Clock:
    """A replacement for the module `time` in the code under test.

    now: seconds; a test sets it, and sleep() adds to it.
    """

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def monotonic(self) -> float:
        return self.now

    def time_ns(self) -> int:
        return int(self.now * 10**9)

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        time.sleep(0)  # let other threads run


class ManualLoop(asyncio.SelectorEventLoop):
    """An event loop whose time stands still until advance() is called, from another thread."""

    def __init__(self) -> None:
        self.now = 1000.0
        super().__init__()

    def time(self) -> float:
        return self.now

    def turn(self, turns: int = 20) -> None:
        """Wait for this many rounds of the loop.

        Then it has done all that it can do without time passing.
        """
        for _ in range(turns):
            round_done = threading.Event()
            self.call_soon_threadsafe(round_done.set)
            assert round_done.wait(SAFETY_SECONDS)

    def advance(self, seconds: float) -> None:
        """Let the loop do what is due, move its time, and let it do what is due then."""
        self.turn()
        self.call_soon_threadsafe(self._move, seconds)
        self.turn()

    def _move(self, seconds: float) -> None:
        self.now += seconds


def until(holds: Callable[[], object], why: str = "it does not happen") -> None:
    """Wait until a condition holds that another thread or process causes."""
    end = time.monotonic() + SAFETY_SECONDS
    while not holds():
        assert time.monotonic() < end, why
        time.sleep(0.01)
