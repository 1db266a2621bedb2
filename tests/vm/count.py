"""Trace the workload of exact VMA changes and count its windows.

Runs in a guest. The counts come from the flight recorder and from the table of windows.

usage: count.py OUT.json N fentry|kprobe|kprobe.multi   (the preferred one, whatever this kernel
preempts; kprobe.multi with kprobes where functions have a program at return)
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec

from tracer.config import Config
from tracer.config_maps import Maps
from tracer.daemon.probes import running_kernel
from tracer.daemon.session import Session, open_session
from tracer.daemon.snapshots import caught_up
from tracer.kernel.running import Kernel
from tracer.protocol.text import text

WORKLOAD = Path(__file__).parent.parent / "workloads/vma.py"
_FLIGHTS = 16384


def prefer(kernel: Kernel, how: str) -> None:
    """Have a method tried first. Raises ValueError where this kernel has none of that kind."""
    kernel.__dict__.update(preempts=how != "fentry", kprobe_refused="")
    if how == "kprobe":
        kernel.__dict__["fprobe_refused"] = "not tried here"
    if how == "kprobe.multi" and kernel.fprobe_refused:
        raise ValueError(kernel.fprobe_refused)


def main(out: str, count: str, how: str) -> None:
    kernel = running_kernel()
    prefer(kernel, how)
    config = msgspec.structs.replace(
        Config(),
        maps=Maps(flight_rows=_FLIGHTS),
        lock_file="/tmp/rmapd-count.lock",
        cache=os.environ["RMAPD_CACHE"],
    )
    started = time.monotonic()
    with open_session(config, kernel) as session:
        gate_seconds = time.monotonic() - started
        workload, begin, end = _run(session, count)
        session.settle(2)
        session.stop()
        found = _count(session, workload.pid, begin, end)
        snapshot = caught_up(session)
    statistics = {
        name: {"runs": s.runs, "microseconds": 1e6 * s.seconds / max(s.runs, 1)}
        for name, s in snapshot.statistics.items()
    }
    found |= {
        "kernel": kernel.release,
        "gate_seconds": round(gate_seconds, 1),
        "rss_bytes": snapshot.peak_rss_bytes,
        "lost": snapshot.lost,
        "checks": {f"{name} {verdict}": n for (name, verdict), n in snapshot.checks.items() if n},
        "violations": [v.first.signature for v in snapshot.violations.values()],
        "hooks": {
            h.hook.name: {"state": h.state, "how": h.how, "reason": h.reason}
            for h in snapshot.hooks
        },
        "attached": sum(h.on for h in snapshot.hooks),
        "coverage": {name: [level, reason] for name, (level, reason) in snapshot.coverage.items()},
        "statistics": statistics,
        "workload": json.loads(workload.stdout.readline()) if workload.stdout else {},
    }
    Path(out).write_text(json.dumps(found, indent=1))


def _run(session: Session, count: str) -> tuple[subprocess.Popen[str], int, int]:
    """Run the workload; return its process and when it continued and finished.

    Times are CLOCK_MONOTONIC in ns. It stops itself before and after the changes.
    """
    workload = subprocess.Popen(
        [sys.executable, str(WORKLOAD), "--wait", count], stdout=subprocess.PIPE, text=True
    )
    _stopped(session, workload.pid)
    begin = time.monotonic_ns()
    os.kill(workload.pid, signal.SIGCONT)
    _stopped(session, workload.pid)
    end = time.monotonic_ns()
    os.kill(workload.pid, signal.SIGCONT)
    while workload.poll() is None:
        session.step(0.1)
    return workload, begin, end


def _stopped(session: Session, pid: int) -> None:
    while True:
        found, status = os.waitpid(pid, os.WNOHANG | os.WUNTRACED)
        if found and os.WIFSTOPPED(status):
            return
        if found:
            sys.exit(f"the workload ended with {status}")
        session.step(0.1)


def _count(session: Session, pid: int, begin: int, end: int) -> dict[str, Any]:
    """Return the windows and protocols of the process, and all windows by both sources."""
    flights, born = (
        session.probes.tables.flight_recorder.flights(),
        session.probes.tables.protocol_table.keys_by_first_ns(),
    )
    own = [
        flight
        for flight in flights
        if flight.row.tgid == pid and begin <= flight.row.start_ns <= end
    ]
    every = {(flight.window, flight.row.tid, flight.row.start_ns) for flight in flights}
    recorded = Counter(window for window, _, _ in every if window != "outside")
    table = {
        name: times.count
        for name, times in session.probes.tables.window_times.windows().items()
        if times.count
    }
    protocols = Counter(
        text(session.protocol_events.encoding.decode(born[flight.row.protocol])) for flight in own
    )
    return {
        "windows": Counter(
            window for window, _, _ in {(f.window, f.row.tid, f.row.start_ns) for f in own}
        ),
        "protocols": protocols,
        "table": table,
        "recorded": recorded,
        "all_protocols": {
            text(ruled.protocol): ruled.windows
            for ruled in session.protocol_events.rulings.protocols()
        },
    }


if __name__ == "__main__":
    main(*sys.argv[1:4])
