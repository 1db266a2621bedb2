"""Run in a guest: how much longer an exact VMA workload and page migration take with each fidelity. Ratios only: the clock is emulated.

usage: cost.py OUT.json [ROUNDS]
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

from tracer.config import Config
from tracer.session import Session, running_kernel

WORKLOADS = Path(__file__).parent.parent / "workloads"
LOADS = {
    **{name: [str(WORKLOADS / "vma.py"), "300", name] for name in ("split_merge", "expand", "brk", "fork", "move")},
    "migrate": [str(WORKLOADS / "migrate.py"), "20000", "64"],
}
_TIMES = 3


def timed(load: list[str]) -> float:
    start = time.monotonic()
    subprocess.run([sys.executable, *load], check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - start


def measure() -> dict[str, float]:
    """Seconds per load, the median of a few."""
    return {name: median(timed(load) for _ in range(_TIMES)) for name, load in LOADS.items()}


def main(out: str) -> None:
    kernel = running_kernel()
    for load in LOADS.values():
        timed(load)  # what is compiled and read once
    seconds, programs = {"none": measure()}, {}
    for fidelity in ("migration", "owner", "full"):
        with Session(Config(fidelity=fidelity, lock_file="/tmp/rmapd-cost.lock"), kernel) as session:
            seconds[fidelity] = measure()
            programs[fidelity] = {
                name: [s.runs, round(1e9 * s.seconds / max(1, s.runs))] for name, s in session.loaded.statistics().items()
            }
            session.stop()
    seconds["none again"] = measure()
    ratios = {fidelity: {name: round(s / seconds["none"][name], 2) for name, s in each.items()} for fidelity, each in seconds.items()}
    Path(out).write_text(json.dumps({"kernel": kernel.release, "ratios": ratios, "programs": programs}, indent=1))
    print(json.dumps(ratios, indent=1))


if __name__ == "__main__":
    main(sys.argv[1])
