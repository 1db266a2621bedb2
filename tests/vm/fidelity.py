"""Change the fidelity of a session repeatedly under load, and record what each level checks.

Runs in a guest.

usage: fidelity.py OUT.json ROUNDS
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from tests.vm.attach import EXPEDITED, LOAD, hooked
from tracer.config import Config
from tracer.daemon.probes import running_kernel
from tracer.daemon.session import Session, open_session
from tracer.daemon.snapshots import caught_up
from tracer.invariants.verdict import Verdict

LEVELS = ("sampled", "owner", "migration", "full")
SECONDS = 6


def holds(session: Session) -> Counter[str]:
    """Return the checks that hold, by invariant, and the number of windows."""
    session.checker.count_protocols()
    checks = session.checker.tally.checks
    return Counter(
        {name: checks[name, Verdict.HOLDS] for name in ("L1", "L3", "L4", "L5")}
        | {"windows": session.protocol_events.rulings.windows}
    )


def main(out: str, rounds: int) -> None:
    before, found = hooked(), list[dict[str, Any]]()
    EXPEDITED.write_text("1")
    kernel = running_kernel()
    kernel.__dict__.update(
        preempts=True, kprobe_refused=""
    )  # kprobes: under load the trampolines of fentry take a guest half an hour
    with open_session(Config(), kernel) as session:
        session.probes.loaded.start_reattach_helper(
            {hook.probe_object for hook in session.probes.loaded.hooks}
        )  # it reattaches with few capabilities, as in the daemon
        print("the gate is open", flush=True)
        load = subprocess.Popen(LOAD)
        try:
            for level in LEVELS[-1:] + LEVELS * rounds:
                start, fidelity = time.monotonic(), session.fidelity
                refused = fidelity.change(level, "a test", session.checker.count_protocols)
                took, counted, end = (
                    time.monotonic() - start,
                    holds(session),
                    time.monotonic() + SECONDS,
                )
                while time.monotonic() < end:
                    session.step(0.2)
                row = {
                    "level": level,
                    "seconds": took,
                    "refused": refused,
                    "hooked": hooked() - before,
                    "held": holds(session) - counted,
                }
                found.append(
                    row
                    | {
                        "coverage": {
                            name: level.value for name, (level, _) in session.coverage.items()
                        }
                    }
                )
                print(
                    {name: value for name, value in found[-1].items() if name != "coverage"},
                    flush=True,
                )
        finally:
            load.terminate()
            load.wait()
        session.stop()
        snapshot = caught_up(session)
    wrong = {
        f"{name} {verdict}": count
        for (name, verdict), count in snapshot.checks.items()
        if verdict is not Verdict.HOLDS and count
    }
    summaries = [violation.first.summary for violation in snapshot.violations.values()]
    print(wrong, snapshot.lost, flush=True)
    text = {
        "kernel": snapshot.kernel,
        "rounds": found,
        "wrong": wrong,
        "violations": summaries,
        "lost": snapshot.lost,
    }
    Path(out).write_text(json.dumps(text, indent=1))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
