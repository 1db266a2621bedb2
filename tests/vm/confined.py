"""Run an installed daemon that gives its privileges up, under a healthy load; note what it may do.

Runs in a guest.

usage: confined.py OUT.json PROGRAM     (PROGRAM: the path of rmapd; it does not see the checkout)
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

from tests.support.daemons import (
    checker_of,
    fetch,
    is_ready,
    loaded_by,
    sample,
    still_loaded,
    threads,
    until,
)

AT = "127.0.0.1:9743"
URL = f"http://{AT}"
PATIENCE_SECONDS = 600
LOAD = [sys.executable, "-m", "tests.workloads.migrate", "20000"]
STATUS = ("Uid", "CapEff", "NoNewPrivs", "Seccomp")
HOLDS, QUESTIONS, AUDITED = (
    'rmapd_checks_total{invariant="M1",verdict="holds"}',
    'rmapd_oracle_questions_total{kind="sweeps"}',
    'rmapd_checks_total{invariant="V4",verdict="holds"}',
)


def risen(name: str, before: float) -> bool:
    return sample(URL, name) > before


def main(out: str, program: str) -> None:
    log = Path(out).with_suffix(".log")
    command = [program, "run", "--listen", AT, "--store", ""]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with (
        log.open("w", encoding="utf-8") as file,
        subprocess.Popen(command, stdout=file, stderr=file, env=environment, cwd="/") as daemon,
    ):
        try:
            until(
                lambda: is_ready(URL) or daemon.poll() is not None,
                PATIENCE_SECONDS,
                "the gate opens",
            )
            before = {name: sample(URL, name) for name in (HOLDS, QUESTIONS, AUDITED)}
            subprocess.run(LOAD, check=True, stdout=subprocess.DEVNULL)
            for name, value in before.items():
                until(partial(risen, name, value), PATIENCE_SECONDS, f"{name} rises")
            found = [*threads(daemon.pid), *threads(checker_of(daemon.pid))]
            held = loaded_by(daemon.pid)
            page = fetch(f"{URL}/metrics")[1]
        finally:
            daemon.terminate()
            code = daemon.wait(300)
    Path(out).write_text(
        json.dumps(
            {
                "exit": code,
                "threads": [{name: one[name] for name in STATUS} for one in found],
                "programs": len(held),
                "left": sorted(still_loaded(held)),
                "metrics": page,
            }
        )
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
