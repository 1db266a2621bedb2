"""Measure what grows with processes and VMAs: start-up, a sweep, memory and rows of the maps.

usage: python -m tests.bench.scale OUT.json PROCESSES:VMAS...

Root, alone on the machine. VMAS are those of each process.
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
from tracer.daemon.probes import running_kernel
from tracer.daemon.session import Session, open_session
from tracer.daemon.snapshots import caught_up

SOURCE = Path(__file__).with_name("population.c")
_TABLES = "ledger frozen visits migrations dying_mms lock_order protocols holds".split()


class Population:
    """The processes; `stir` makes each of them change a VMA."""

    def __init__(self, program: Path, processes: int, vmas: int) -> None:
        self._processes = processes
        command = [str(program), str(processes), str(vmas)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )

    def wait_for_line(self, session: Session | None) -> float:
        """Run the session's loop until the population prints a line; return the seconds."""
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
        return self.wait_for_line(session)


@contextlib.contextmanager
def population(folder: str, processes: int, vmas: int) -> Iterator[Population]:
    program = Path(folder) / "population"
    subprocess.run(
        [
            "gcc",
            "-std=gnu11",
            "-O1",
            "-Wall",
            "-Wextra",
            "-Werror",
            "-static",
            "-o",
            str(program),
            str(SOURCE),
        ],
        check=True,
    )
    many = Population(program, processes, vmas)
    try:
        yield many
    finally:
        if many.process.stdin:
            many.process.stdin.close()
        many.process.wait()


def kernel_bytes() -> dict[str, int]:
    """Return the memory of the kernel apart from user pages, by /proc/meminfo."""
    lines = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
    found = {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines}
    return {
        name: found[name]
        for name in ("SUnreclaim", "Percpu", "VmallocUsed", "KernelStack", "PageTables")
    }


def observe(session: Session) -> dict[str, Any]:
    """Sweep all page tables, and return the times, the rows of the tables and the losses."""
    started = time.monotonic()
    mms = session.checker.open_cases.oracle.mms() if session.checker.open_cases.oracle else []
    listed = time.monotonic() - started
    sweep = (
        session.checker.open_cases.oracle.sweep(mms) if session.checker.open_cases.oracle else None
    )
    took = time.monotonic() - started
    started = time.monotonic()
    counters = caught_up(session).counters
    rows = {
        name: sum(1 for _ in session.probes.loaded.maps[name].items())
        for name in _TABLES
        if name in session.probes.loaded.maps
    }
    return {
        "mms": len(mms),
        "list_seconds": round(listed, 3),
        "sweep_seconds": round(took, 3),
        "tables": sweep.tables if sweep else 0,
        "complete": bool(sweep and sweep.complete),
        "snapshot_seconds": round(time.monotonic() - started, 3),
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "rows": rows,
        "windows": sum(
            times.count for times in session.probes.tables.window_times.windows().values()
        ),
        "lost": {
            name: n
            for name, n in counters.items()
            if n and name.endswith(("LOST", "UNCLOSED", "OVERLONG"))
        },
    }


@contextlib.contextmanager
def opened() -> Iterator[tuple[Session, float]]:
    started = time.monotonic()
    with open_session(Config(statistics=False, scan_seconds=0), running_kernel()) as session:
        yield session, round(time.monotonic() - started, 2)
        session.stop()


def _under(session: Session, folder: str, processes: int, vmas: int) -> dict[str, Any]:
    """Measure a population that starts and changes under rmapd."""
    before = kernel_bytes()
    with population(folder, processes, vmas) as many:
        made = many.wait_for_line(session)
        stirred = many.stir(session)
        kernel = {name: after - before[name] for name, after in kernel_bytes().items()}
        return {
            "made_seconds": made,
            "stirred_seconds": stirred,
            "kernel_bytes": kernel,
            **observe(session),
        }


def _without(folder: str, processes: int, vmas: int) -> dict[str, Any]:
    """Measure the same without rmapd."""
    before = kernel_bytes()
    with population(folder, processes, vmas) as many:
        made = many.wait_for_line(None)
        stirred = many.stir(None)
        kernel = {name: after - before[name] for name, after in kernel_bytes().items()}
        return {"made_seconds": made, "stirred_seconds": stirred, "kernel_bytes": kernel}


def main(out: str, *sizes: str) -> None:
    """Measure all sizes under one session, then without, then the start beside the largest one."""
    wanted, found = [tuple(map(int, size.split(":"))) for size in sizes], dict[str, Any]()

    def note(name: str, what: object) -> None:
        found[name] = what
        print(name, json.dumps(what), flush=True)
        Path(out).write_text(json.dumps(found, indent=1))

    with tempfile.TemporaryDirectory() as folder:
        note("kernel", running_kernel().release)
        with opened() as (session, gate):
            refused = {
                hook.hook.name: hook.reason
                for hook in session.probes.loaded.hooks
                if not hook.on and "refused at" in hook.reason
            }
            note(
                "alone",
                {
                    "gate_seconds": gate,
                    "hooks": sum(h.on for h in session.probes.loaded.hooks),
                    "refused": refused,
                    **observe(session),
                },
            )
            for processes, vmas in wanted:
                note(f"under {processes}:{vmas}", _under(session, folder, processes, vmas))
        for processes, vmas in wanted:
            note(f"without {processes}:{vmas}", _without(folder, processes, vmas))
        with population(folder, *max(wanted)) as many:
            many.wait_for_line(None)
            with opened() as (session, gate):
                note("beside the largest", {"gate_seconds": gate, **observe(session)})


if __name__ == "__main__":
    main(*sys.argv[1:])
