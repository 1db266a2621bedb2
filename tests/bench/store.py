"""What a tick costs that writes the store: python -m tests.bench.store [FOLDER]. Prints a row per load, times in milliseconds."""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path

from tests.support.snapshots import full
from tracer.report import as_json
from tracer.store import Store
from tracer.verdict import Finding, Tally, Verdict

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
    """With the evidence and the trail of a bad one."""
    return Finding("L1", Verdict.VIOLATED, "__vma_adjust", f"shape {n}", "s", {}, STACK, {"a": "b" * 500}, "x" * 120, (STEP,) * 32)


def measure(folder: Path, signatures: int, a_tick: int, new: bool) -> list[float]:
    """Seconds of each tick: `a_tick` of `signatures` known ones are met again, or are new."""
    store, tally, out = Store(folder / "rmapd.db", "6.1", 64 << 20, 90), Tally(), list[float]()
    for n in range(signatures):
        tally.record(finding(n), time.time())
    store.keep(tally.violations.values(), tally.rest)
    for tick in range(min(TICKS, 900 // a_tick) if new else TICKS):
        for n in range(a_tick):
            tally.record(finding(signatures + tick * a_tick + n if new else n), time.time())
        begin = time.perf_counter()
        store.keep(tally.violations.values(), tally.rest)
        out.append(time.perf_counter() - begin)
    store.close()
    return out


def main() -> None:
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as folder:
        print(f"{'load':44} {'median':>8} {'p99':>8} {'worst':>8}")
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
        report, store, times = as_json(full(), ["rmapd", "run"], 0), Store(Path(folder, "run.db"), "6.1", 64 << 20, 90), list[float]()
        for _ in range(TICKS):
            begin = time.perf_counter()
            store.keep_run(report)
            times.append(time.perf_counter() - begin)
        row("the run's report, once a minute", times)


def row(name: str, seconds: list[float]) -> None:
    ordered = sorted(seconds)
    shown = (statistics.median(ordered), ordered[int(len(ordered) * 0.99)], ordered[-1])
    print(f"{name:44} " + " ".join(f"{each * 1e3:8.3f}" for each in shown))


if __name__ == "__main__":
    main()
