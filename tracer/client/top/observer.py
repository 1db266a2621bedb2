"""Ask a daemon for everything that the view shows, in a thread of its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tracer.client.answers import Entry, Function, Lock, Seen
from tracer.client.connection import Client
from tracer.client.history import History, Speeds, totals


@dataclass(frozen=True)
class Picture:
    """Everything about a daemon at one moment.

    at: when it was asked, in monotonic seconds. restarted: when another run than the one before was
    first seen, or None.
    """

    seen: Seen
    functions: Sequence[Function]
    locks: Sequence[Lock]
    entries: Sequence[Entry]
    history: History
    speeds: Speeds
    at: float
    restarted: float | None = None

    def age(self, now: float) -> float:
        """Return the age of what it shows, in seconds. now: monotonic."""
        return self.seen.age_seconds + max(0.0, now - self.at)


class Observer:
    """Takes pictures of one daemon. clock: monotonic seconds."""

    def __init__(self, client: Client, clock: Callable[[], float] = time.monotonic) -> None:
        self.client, self._clock = client, clock
        self._run = ""
        self._restarted: float | None = None
        self._history, self._speeds = History(), Speeds()

    def look(self) -> Picture:
        """Return a new picture. Raises RmapdError where the daemon gives no answer."""
        seen = self.client.status()
        if seen.status.run != self._run:
            if self._run:
                self._restarted = self._clock()
            self._run, self._history, self._speeds = seen.status.run, History(), Speeds()
        self._history = self._history.longer(self.client.rates(self._history.last))
        functions, locks = self.client.functions(), self.client.locks()
        self._speeds = self._speeds.later(self._clock(), totals(functions, locks))
        return Picture(
            seen,
            functions,
            locks,
            self.client.entries(),
            self._history,
            self._speeds,
            self._clock(),
            self._restarted,
        )


class Poller:
    """Looks every `interval` seconds, first after that time, and at once after wake().

    show: called in the thread with each picture, or with the error where there is none; an error
    other than RmapdError is a defect. The thread ends with the process: a request that hangs must
    not hold up the end of the view.
    """

    def __init__(
        self,
        look: Callable[[], Picture],
        show: Callable[[Picture | Exception], object],
        interval: float,
    ) -> None:
        self.interval = interval
        self._look, self._show = look, show
        self._wake, self._ended = threading.Event(), False
        self._thread = threading.Thread(target=self._run, name="rmapd-top", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def wake(self) -> None:
        """Look at once."""
        self._wake.set()

    def end(self) -> None:
        """Show nothing more."""
        self._ended = True
        self._wake.set()

    def _run(self) -> None:
        while True:
            self._wake.wait(self.interval)
            self._wake.clear()
            if self._ended:
                return
            found: Picture | Exception
            try:
                found = self._look()
            except Exception as error:
                found = error
            if not self._ended:
                self._show(found)
