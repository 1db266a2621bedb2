"""Measure the time from a violation to its log line and metric, in a guest.

usage: truth.py OUT.json MODULE ROUNDS FAULT...
       python -m tests.vm.truth ROUNDS     on the host: boots the guest and prints a table

Each round loads the module anew, which resets the time of the first strike, and starts a new
daemon, because a daemon logs a known violation only once. Times are seconds from the first strike
by the guest's clock. Compaction for M2, M3 and L6 takes CPU time meanwhile.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from threading import Thread
from typing import IO

from tests.support.daemons import RMAPD, is_ready, until
from tests.vm.alert import AT, URL, pages
from tests.vm.guest import run
from tests.vm.modules import built
from tests.workloads.faults import OPERATIONS, SPACE, arm
from tests.workloads.victim import PARAMETERS, struck

FAULTS = (
    "walk_unlocked entry_unlocked restored_unlocked adjust_swapped commit_unlocked error_locked "
    "not_paired import_lost pgoff_lost"
)
"""Each violates other invariants: M2, M3, L1 to L6, V1, V2 and V5 once a round.

M1 and M5 are left out because their faults kill the guest.
"""
_LATEST_SECONDS = 10
Delays = dict[str, tuple[float, float]]
"""Seconds to the log line and to the metric, by invariant."""


def listen(stream: IO[str], logged: list[tuple[float, str]]) -> None:
    for line in stream:
        logged.append((time.time(), json.loads(line)["invariant"]))


def measure_delays(fault: str, logged: Sequence[tuple[float, str]]) -> Delays:
    """Cause a fault; return the delays of invariants that were not violated before.

    The metrics page is fetched only while a logged violation is not on it, because fetching takes
    CPU time from the checker.
    """
    counted, shown, before = pages(), dict[str, float](), len(logged)
    operation = Thread(target=OPERATIONS[fault], args=(fault,))
    operation.start()
    end = time.time() + _LATEST_SECONDS
    while operation.is_alive() or time.time() < (max(shown.values()) + SPACE if shown else end):
        found = (
            pages() if {of for _, of in logged[before:] if not counted[of]} - {*shown} else counted
        )
        now = time.time()
        for name in {name for name, count in found.items() if count and not counted[name]} - {
            *shown
        }:
            shown[name] = now
        time.sleep(0.02)
    arm(f"{fault} 0")
    first = struck(fault)[1]
    return {
        name: (min(when for when, of in logged if of == name) - first, at - first)
        for name, at in shown.items()
    }


def one_round(module: str, faults: Sequence[str]) -> Delays:
    if PARAMETERS.exists():
        subprocess.run(["rmmod", "rmapd_faults"], check=True)
    subprocess.run(["insmod", module], check=True)
    logged: list[tuple[float, str]] = []
    command = [RMAPD, "run", "--listen", AT, "--fidelity", "full", "--store", ""]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        Thread(target=listen, args=(process.stdout, logged), daemon=True).start()
        try:
            until(lambda: is_ready(URL), 900, "the gate is open")
            time.sleep(5)
            return {
                name: delays
                for fault in faults
                for name, delays in measure_delays(fault, logged).items()
            }
        finally:
            process.terminate()
            process.wait(300)


def main(out: str, module: str, rounds: int, faults: Sequence[str]) -> None:
    found: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for number in range(rounds):
        for name, delays in one_round(module, faults).items():
            found[name].append(delays)
        print(f"round {number + 1} of {rounds}", flush=True)
        Path(out).write_text(json.dumps(found, indent=1))


def _row(name: str, delays: Sequence[tuple[float, float]]) -> str:
    cells = [name, str(len(delays))]
    for which in (0, 1):
        ordered = sorted(each[which] for each in delays)
        cells += [
            f"{ordered[len(ordered) // 2]:.2f}",
            f"{ordered[-1]:.2f}",
            f"{sum(one <= 1 for one in ordered)}",
        ]
    return f"| {' | '.join(cells)} |"


def on_host(rounds: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        module = built("6.1", "rmapd_faults", Path(folder))
        command = f"python -u -m tests.vm.truth $OUT/truth.json {module} {rounds} {FAULTS}"
        result = run(
            "6.1",
            command,
            append="rmapd_faults=guest",
            label="truth",
            timeout=900 + 300 * rounds,
        )
    print(result.output)
    found = json.loads((result.folder / "truth.json").read_text())
    print(
        "| invariant | strikes | log: median, s | slowest | within a tick "
        "| metric: median, s | slowest | within a tick |"
    )
    for name, delays in sorted(found.items()):
        print(_row(name, delays))


if __name__ == "__main__":
    if len(sys.argv) == 2:
        on_host(int(sys.argv[1]))
    else:
        main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4:])
