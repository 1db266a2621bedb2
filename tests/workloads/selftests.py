"""A workload: run the kernel's own tests of mm as their suite does, and count their results.

usage: python -m tests.workloads.selftests FOLDER [SECONDS]     (root; prints one JSON line)

SECONDS: the time limit of each.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

RUNS = (
    "rmap",
    "merge",
    "mremap_test",
    "mremap_dontunmap",
    "migration",
    "split_huge_page_test",
    "folio_split_race_test",
    "khugepaged",
    "ksm_tests -M -p 10",
    "ksm_tests -U",
    "ksm_tests -Z -p 10 -z 0",
    "ksm_tests -Z -p 10 -z 1",
    "ksm_tests -N -m 1",
    "ksm_tests -N -m 0",
    "ksm_functional_tests",
)
_SKIPPED = 4  # KSFT_SKIP
_HUGE = Path("/proc/sys/vm/nr_hugepages")
_TAP = re.compile(r"^ *(not ok|ok) \d+(?:.*(# SKIP))?", re.M)
_COLOURED = re.compile(r"\x1b\[\d+m(OK|Fail|Skip)")


def count(output: str, code: int | None) -> dict[str, int]:
    """Count pass, fail and skip by TAP, by khugepaged's words, or else by the exit code.

    code: None if the test was stopped.
    """
    found = {"pass": 0, "fail": 0, "skip": 0}
    for result, skip in _TAP.findall(output):
        found["skip" if skip else "pass" if result == "ok" else "fail"] += 1
    for word in _COLOURED.findall(output):
        found[{"OK": "pass", "Fail": "fail", "Skip": "skip"}[word]] += 1
    if not any(found.values()) and code is not None:
        found["pass" if code == 0 else "skip" if code == _SKIPPED else "fail"] = 1
    return found


def run(folder: Path, command: str, seconds: float) -> dict[str, Any]:
    """Run a test, kill it and its children after its time; its output is kept in $OUT."""
    name, began = command.replace(" ", "_"), time.monotonic()
    path = Path(os.environ.get("OUT", "/tmp")) / f"selftest-{name}"
    with open(path, "wb") as output_file:
        child = subprocess.Popen(
            ["stdbuf", "-oL", f"./{command.split(maxsplit=1)[0]}", *command.split()[1:]],
            cwd=folder,
            stdout=output_file,
            stderr=output_file,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            code: int | None = child.wait(seconds)
        except subprocess.TimeoutExpired:
            code = None
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
    return {
        "exit": code,
        "seconds": round(time.monotonic() - began, 1),
        **count(path.read_text(errors="replace"), code),
    }


def main(folder: Path, seconds: float = 120) -> None:
    before = _HUGE.read_text()
    _HUGE.write_text("16")  # the test `migration` needs them
    available = [command for command in RUNS if (folder / command.split()[0]).exists()]
    done = {command: run(folder, command, seconds) for command in available}
    _HUGE.write_text(before)
    print(json.dumps({"selftests": done}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(float, sys.argv[2:3]))
