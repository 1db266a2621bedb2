"""The HTTP side of a daemon over snapshots made by hand: for tests of its clients.

`python -m tests.support.served PORT [WEB_CONFIG]` serves a busy host that moves, with defects: to
look at `rmapd top` without a kernel.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.support import busy
from tracer.results.latest import LatestSnapshot
from tracer.results.snapshot import Snapshot
from tracer.web import Access, Application, Server


class Daemon:
    """Serves the last snapshot that was put, on one port of loopback, also after a restart."""

    def __init__(self, snapshot: Snapshot | None = None, access: Path | None = None) -> None:
        self.snapshot = snapshot or busy.snapshot()
        self._access, self._port, self._runs = access, 0, 0
        self._server: Server | None = None

    def __enter__(self) -> Daemon:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def port(self) -> int:
        """The port, the same after a restart."""
        return self._port

    @property
    def url(self) -> str:
        """The URL of its root."""
        return f"{'https' if self._access else 'http'}://127.0.0.1:{self._port}"

    def start(self, *, ready: bool = True, **changes: Any) -> None:
        """Begin a new run; ready: its gate is open."""
        self._runs += 1
        self.latest = LatestSnapshot(lambda: 0.0)
        if ready:
            self.put(run=f"{self._runs:016x}", **changes)
        access = Access(self._access) if self._access else None
        self._server = Server(("127.0.0.1", self._port), Application(self.latest), access)
        self._server.__enter__()
        self._port = self._server.port

    def stop(self) -> None:
        """End the run; nothing listens then."""
        server, self._server = self._server, None
        if server:
            server.__exit__(None, None, None)
            self.latest.close()

    def put(self, *, age: float = 0.0, **changes: Any) -> Snapshot:
        """Serve a changed snapshot that was taken `age` seconds ago."""
        self.snapshot = replace(self.snapshot, taken_seconds=time.time() - age, **changes)
        return self.latest.put(self.snapshot)


def _main(port: int, access: Path | None) -> None:
    """Serve a busy host until a signal ends it."""
    latest = LatestSnapshot()

    def moved(seconds: float) -> Snapshot:
        shift = time.time() - busy.snapshot().taken_seconds - (time.monotonic() - began)
        s = busy.snapshot(seconds)
        later = {
            id: replace(v, first_seen=v.first_seen + shift, last_seen=v.last_seen + shift)
            for id, v in s.violations.items()
        }
        return replace(s, taken_seconds=s.taken_seconds + shift, violations=later)

    began = time.monotonic()
    for second in range(3400, 4000, 2):
        latest.put(moved(second))
    rules = Access(access) if access else None
    with Server(("127.0.0.1", port), Application(latest), rules) as server:
        print(server.port, flush=True)
        while True:
            latest.put(moved(4000 + time.monotonic() - began))
            time.sleep(1)


if __name__ == "__main__":
    _main(int(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else None)
