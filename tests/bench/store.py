"""Measure the cost of a tick that writes the store.

usage: python -m tests.bench.store [FOLDER]

Prints a row per load: milliseconds of CPU time of this thread, and of wall-clock time, which
includes the disk and other programs.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path

from tests.support.snapshots import full
from tracer.invariants.verdict import Finding, Tally, Verdict
from tracer.outputs.store.writer import Store
from tracer.packed import pack
from tracer.results.json_form import as_json

TICKS = 300
STACK = tuple(f"function_number_{n}+0x12" for n in range(12))
STEP = {
    "time_ns": 1,
    "function": "__vma_adjust",
    "task": {"pid": 1},
    "vma": {"vma": "0xffff888000001000"},
    "protocol": "x" * 120,
    "stack": STACK,
}


def finding(n: int) -> Finding:
    """Return a violated finding with evidence and a trail."""
    return Finding(
        "L1",
        Verdict.VIOLATED,
        "__vma_adjust",
        f"shape {n}",
        "s",
        {},
        STACK,
        {"a": "b" * 500},
        "x" * 120,
        pack((STEP,) * 32),
    )


def measure(folder: Path, signatures: int, a_tick: int, new: bool) -> list[tuple[float, float]]:
    """Return the seconds of CPU and of wall-clock time of each tick.

    signatures: how many are known before. a_tick: how many are found in a tick, known or new.
    """
    store, tally, out = (
        Store(folder / "rmapd.db", "6.1", 64 << 20, 90),
        Tally(),
        list[tuple[float, float]](),
    )
    for n in range(signatures):
        tally.record(finding(n), time.time())
    store.keep(tally.violations.values(), tally.rest)
    for tick in range(min(TICKS, 900 // a_tick) if new else TICKS):
        for n in range(a_tick):
            tally.record(finding(signatures + tick * a_tick + n if new else n), time.time())
        begin = time.thread_time(), time.perf_counter()
        store.keep(tally.violations.values(), tally.rest)
        out.append((time.thread_time() - begin[0], time.perf_counter() - begin[1]))
    store.close()
    return out


def main() -> None:
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as folder:
        print(
            f"{'load':42} "
            + " ".join(
                f"{head:>10}" for head in ("CPU median", "CPU p99", "median", "p99", "worst")
            )
        )
        for number, (name, signatures, a_tick, new) in enumerate(
            (
                ("nothing new, 1,000 signatures known", 1000, 0, False),
                ("one signature met again", 1, 1, False),
                ("100 of 1,000 signatures met again", 1000, 100, False),
                ("1,000 of 1,000 signatures met again", 1000, 1000, False),
                ("one new signature, 32 windows of trail", 1, 1, True),
                ("30 new signatures, 32 windows of trail", 1, 30, True),
            )
        ):
            (place := Path(folder, str(number))).mkdir()
            row(name, measure(place, signatures, a_tick, new))
        report, store = (
            as_json(full(), ["rmapd", "run"], 0),
            Store(Path(folder, "run.db"), "6.1", 64 << 20, 90),
        )
        times = []
        for _ in range(TICKS):
            begin = time.thread_time(), time.perf_counter()
            store.keep_run(report)
            times.append((time.thread_time() - begin[0], time.perf_counter() - begin[1]))
        row("the run's report, once a minute", times)


def row(name: str, seconds: list[tuple[float, float]]) -> None:
    cpu, clock = (sorted(each) for each in zip(*seconds, strict=True))
    shown = (
        statistics.median(cpu),
        cpu[int(len(cpu) * 0.99)],
        statistics.median(clock),
        clock[int(len(clock) * 0.99)],
        clock[-1],
    )
    print(f"{name:42} " + " ".join(f"{each * 1e3:10.3f}" for each in shown))


if __name__ == "__main__":
    main()
