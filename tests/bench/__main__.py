"""What rmapd costs: printed, never asserted. Ratios are between runs that alternate in one go, as times on a shared machine drift.

usage: python -m tests.bench     (root)
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.live.conftest import RMAPD, WORKLOAD, daemon, sample

ROUNDS = 5
FORKS = [sys.executable, "-c", "import os\nfor _ in range(600):\n p=os.fork()\n if not p: os._exit(0)\n os.waitpid(p,0)"]
FAULTS = [
    sys.executable,
    "-c",
    "import mmap\nfor _ in range(60):\n b=mmap.mmap(-1,8<<20,flags=34)\n for o in range(0,8<<20,4096): b[o]=1\n b.close()",
]
MAPS = [sys.executable, "-c", "import mmap\nfor _ in range(60000):\n mmap.mmap(-1,4096,flags=34).close()"]


def seconds(command: list[str]) -> float:
    start = time.monotonic()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - start


def gate() -> list[float]:
    """From starting the process to /-/ready."""
    times = []
    for _ in range(ROUNDS):
        start = time.monotonic()
        with daemon():
            times.append(time.monotonic() - start)
    return times


def workload() -> None:
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "r.json"
        command = [RMAPD, "exec", "--report", str(report), "--", *WORKLOAD, "200000"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        found = json.loads(report.read_text())
    checks, overhead = found["invariants"]["M1"]["checks"], found["overhead"]
    share = 100 * overhead["user_seconds"] / found["duration_seconds"]
    print(f"workload: {checks} in {found['duration_seconds']:.1f} s, cleared by the oracle {found['oracle'].get('cleared', 0)}")
    print(f"  peak RSS {overhead['rss_bytes'] / 1e6:.0f} MB, user CPU {overhead['user_seconds']:.3f} s = {share:.2f} % of one core")
    for name, hook in sorted(overhead["hooks"].items(), key=lambda item: -item[1]["seconds"]):
        if hook["runs"]:
            print(f"  {name:28} {hook['runs']:9,} runs {hook['seconds'] / hook['runs'] * 1e9:7.0f} ns each, {hook['missed']} missed")


def ratio(name: str, command: list[str], *flags: str) -> None:
    """The command with rmapd over the command without, alternating."""
    off, on = [], []
    for _ in range(ROUNDS):
        off.append(seconds(command))
        with daemon(*flags):
            on.append(seconds(command))
    spread = f"without {min(off):.2f}-{max(off):.2f} s, with {min(on):.2f}-{max(on):.2f} s"
    print(f"{name}: {statistics.median(on) / statistics.median(off):.3f} times ({spread})")


def idle() -> None:
    with daemon() as (_, url):
        time.sleep(3)
        before = sample(url, "rmapd_user_seconds_total")
        time.sleep(20)
        used = sample(url, "rmapd_user_seconds_total") - before
        print(f"idle: user CPU {100 * used / 20:.2f} % of one core, peak RSS {sample(url, 'rmapd_peak_rss_bytes') / 1e6:.0f} MB")


def main() -> None:
    print(f"kernel {os.uname().release}, {os.cpu_count()} CPUs")
    times = gate()
    print(f"gate open after {min(times):.2f}-{max(times):.2f} s, median {statistics.median(times):.2f} s")
    workload()
    idle()
    for name, command in (("fork and exit", FORKS), ("anonymous faults", FAULTS), ("mmap and munmap", MAPS)):
        ratio(name, command)
        ratio(f"{name}, fidelity migration", command, "--fidelity", "migration")


if __name__ == "__main__":
    main()
