"""What grows with the number of processes and VMAs: time to the gate, a sweep, memory, rows of the maps.

usage: python -m tests.bench.scale OUT.json PROCESSES:VMAS...     (root, alone on the machine; VMAS of each process)
"""

from __future__ import annotations

import contextlib
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tracer.config import Config
from tracer.session import Session, running_kernel

SOURCE = Path(__file__).with_name("population.c")
_BOOKS = "ledger frozen visits migrations dying_mms lock_order protocols holds".split()


class Population:
    """The processes; `stir` has each of them change a VMA."""

    def __init__(self, program: Path, processes: int, vmas: int) -> None:
        self._processes = processes
        command = [str(program), str(processes), str(vmas)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)

    def await_word(self, session: Session | None) -> float:
        """Seconds until it says something, with the session's loop running meanwhile."""
        started = time.monotonic()
        if session:
            session.step(0.01)
        assert self.process.stdout
        if not self.process.stdout.readline():
            raise RuntimeError(f"the population ended with {self.process.wait()}")
        if session:
            session.step(0.01)
        return time.monotonic() - started

    def stir(self, session: Session | None) -> float:
        assert self.process.stdin
        self.process.stdin.write("\n")
        return self.await_word(session)


@contextlib.contextmanager
def population(folder: str, processes: int, vmas: int) -> Iterator[Population]:
    program = Path(folder) / "population"
    subprocess.run(["gcc", "-std=gnu11", "-O1", "-Wall", "-Wextra", "-Werror", "-static", "-o", str(program), str(SOURCE)], check=True)
    many = Population(program, processes, vmas)
    try:
        yield many
    finally:
        if many.process.stdin:
            many.process.stdin.close()
        many.process.wait()


def kernel_bytes() -> dict[str, int]:
    """Memory of the kernel that is not page tables or user pages, by /proc/meminfo."""
    lines = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
    found = {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines}
    return {name: found[name] for name in ("SUnreclaim", "Percpu", "VmallocUsed", "KernelStack", "PageTables")}


def looked_at(session: Session) -> dict[str, Any]:
    """A sweep now, and what the books hold."""
    started = time.monotonic()
    mms = session.desk.oracle.mms() if session.desk.oracle else []
    listed = time.monotonic() - started
    sweep = session.desk.oracle.sweep(mms) if session.desk.oracle else None
    took = time.monotonic() - started
    started = time.monotonic()
    counters = session.snapshot().counters
    rows = {name: sum(1 for _ in session.loaded.maps[name].items()) for name in _BOOKS if name in session.loaded.maps}
    return {
        "mms": len(mms),
        "list_seconds": round(listed, 3),
        "sweep_seconds": round(took, 3),
        "tables": sweep.tables if sweep else 0,
        "complete": bool(sweep and sweep.complete),
        "snapshot_seconds": round(time.monotonic() - started, 3),
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "rows": rows,
        "windows": sum(times.count for times in session.windows.times().values()),
        "lost": {name: n for name, n in counters.items() if n and name.endswith(("LOST", "UNCLOSED", "OVERLONG"))},
    }


@contextlib.contextmanager
def opened() -> Iterator[tuple[Session, float]]:
    started = time.monotonic()
    with Session(Config(statistics=False, patrol_seconds=0), running_kernel()) as session:
        yield session, round(time.monotonic() - started, 2)
        session.stop()


def measure(folder: str, processes: int, vmas: int) -> dict[str, Any]:
    """The population is made and stirred under rmapd, then rmapd is started beside it."""
    with opened() as (session, gate):
        before = kernel_bytes()
        alone = looked_at(session)
        with population(folder, processes, vmas) as many:
            made = many.await_word(session)
            stirred = many.stir(session)
            kernel = {name: after - before[name] for name, after in kernel_bytes().items()}
            under = looked_at(session)
    with population(folder, processes, vmas) as many:
        before = kernel_bytes()
        bare_made = many.await_word(None)
        bare_stirred = many.stir(None)
        bare = {name: after - before[name] for name, after in kernel_bytes().items()}
        with opened() as (session, beside):
            late = looked_at(session)
    seconds = {"made": [made, bare_made], "stirred": [stirred, bare_stirred]}
    return {
        "processes": processes,
        "vmas": processes * vmas,
        "gate_seconds": {"alone": gate, "beside": beside},
        "seconds_with_and_without": {name: [round(s, 3) for s in both] for name, both in seconds.items()},
        "kernel_bytes_with": kernel,
        "kernel_bytes_without": bare,
        "alone": alone,
        "under": under,
        "beside": late,
    }


def main(out: str, *sizes: str) -> None:
    found = []
    for size in sizes:
        processes, vmas = map(int, size.split(":"))
        with tempfile.TemporaryDirectory() as folder:
            found.append(measure(folder, processes, vmas))
        print(json.dumps(found[-1]), flush=True)
        Path(out).write_text(json.dumps({"kernel": running_kernel().release, "found": found}, indent=1))


if __name__ == "__main__":
    main(*sys.argv[1:])
