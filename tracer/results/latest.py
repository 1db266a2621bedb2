"""The latest snapshot, made on demand: reading all tables costs more than a second of checking."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

from tracer.results.history import HistoryPoint, longer
from tracer.results.snapshot import Snapshot

_FRESH_SECONDS = 1.0
_OLD_SECONDS = 10.0
_PATIENCE_SECONDS = 0.25


class LatestSnapshot:
    """One reference, replaced as a whole by the checking thread and read by any thread.

    None until the gate is open. points: of the last ten minutes, oldest first.

    A call that finds the snapshot older than a second asks for a new one through the descriptor
    `asked`, on which the checking thread sleeps, and waits for it a quarter of a second at most,
    once a second: a busy checker must not keep readers waiting. So there is one snapshot a second
    for any number of readers. Once the gate is closed the last one stays.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._snapshot: Snapshot | None = None
        self.points: tuple[HistoryPoint, ...] = ()
        self._clock, self._taken, self._gave_up = clock, 0.0, -_FRESH_SECONDS
        self._changed = threading.Condition()
        self.asked = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def __call__(self) -> Snapshot | None:
        """Return the snapshot; if it is old, ask for a new one and wait for it for a moment."""
        with self._changed:
            known = self._snapshot
            if known is not None and known.gate_open and self._age() >= _FRESH_SECONDS:
                os.eventfd_write(self.asked, 1)
                if self._clock() - self._gave_up >= _FRESH_SECONDS:
                    came = self._changed.wait_for(
                        lambda: self._snapshot is not known, _PATIENCE_SECONDS
                    )
                    self._gave_up = self._gave_up if came else self._clock()
            return self._snapshot

    def _age(self) -> float:
        return self._clock() - self._taken

    def put(self, snapshot: Snapshot) -> Snapshot:
        """Replace the snapshot. To be called by the checking thread."""
        with self._changed:
            self._snapshot, self._taken = snapshot, self._clock()
            self.points = longer(self.points, snapshot)
            self._changed.notify_all()
        return snapshot

    def wanted(self) -> bool:
        """Whether a reader has asked since the last call."""
        try:
            return os.eventfd_read(self.asked) > 0
        except BlockingIOError:
            return False

    def old(self) -> bool:
        """Whether a new one is due without a reader: for the status line, and for lost events."""
        return self._age() >= _OLD_SECONDS

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self.asked)
